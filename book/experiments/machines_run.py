"""One run from the first batch to the last: ResNet-8 on Fashion-MNIST with LLQR+SAM, and a look inside it.

    python -m book.experiments.machines_run --data-path DATA --out RUNS            some ten minutes on one core

The run is the training command's own, and so is its record. Its first epoch is then taken a second time with a look
at every step; what a step does depends on the weights, the optimizer's state and the step's number alone, so the two
have to agree, and are compared. Writes book/results/machines_run.json.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from book.experiments.bench import Options as Machine
from book.experiments.bench import environment
from book.experiments.store import RESULTS, store
from llqr_sam_ref.optim import LLQR, frozen_batch_stats
from llqr_sam_ref.optim.curvature import observed
from llqr_sam_ref.train import checkpoint, cli, record
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.earlier import as_now
from llqr_sam_ref.train.loop import Observer, Trainer, averages
from llqr_sam_ref.train.ranks import RunRanks

METHOD = "llqr-sampled-sam"
PUBLISHED = "llqr-published-sam"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Command line of the run.

    Args:
        data_path: folder of Fashion-MNIST's four files.
        out: folder of the run; a run that is there already is not trained again.
        preset: what is trained.
        results: where the JSON goes; None for book/results.
        extra: more words of the training command.
    """

    data_path: str
    out: Path
    preset: str = "fashion-resnet8"
    results: Path | None = None
    extra: tuple[str, ...] = ()


class Eye(Observer):
    """Keeps both gradients of the last step, and what U made of the first."""

    first: Tensor
    second: Tensor
    blocks: Rows
    looking = 0.0  # seconds spent on looking and not on training

    def perturbed(self, trainer: Trainer) -> None:
        """Look at the first pass's gradients, and at the U that a due refit has left."""
        start = time.process_time()
        self.first, self.blocks = flat_gradient(trainer), whole(preconditioner(trainer))
        self.looking += time.process_time() - start

    def second_pass(self, trainer: Trainer) -> None:
        """Look at the second pass's gradients."""
        self.second = flat_gradient(trainer)


def trainer(config: TrainConfig, eye: Eye | None = None) -> Trainer:
    """The trainer of a run, at its beginning."""
    return Trainer(config, load_data(config.data, torch.device("cpu")), RunRanks(), eye)


def preconditioner(run: Trainer) -> LLQR:
    """The LLQR under the SAM."""
    base = getattr(run.optimizer, "base", None)
    assert isinstance(base, LLQR)
    return base


def flat_gradient(run: Trainer) -> Tensor:
    """All gradients in a row."""
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def flat_weights(run: Trainer) -> Tensor:
    """A copy of all weights in a row."""
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors."""
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


def whole(llqr: LLQR) -> Rows:
    """The report on the gradients that are there: one row per block."""
    return [
        {
            "name": row.name,
            "distance": row.distance,
            "stretch": row.stretch,
            "cosine": row.cosine,
            "descent": row.descent,
        }
        for row in llqr.report()
    ]


def preconditioned_cosine(llqr: LLQR) -> float:
    """Of the angle between U g and g, over all weights."""
    pairs = zip(llqr.preconditioned_gradients(), llqr.param_groups[0]["params"], strict=True)
    Ug, g = zip(*((s.flatten(), p.grad.flatten()) for s, p in pairs if s is not None), strict=True)
    return cosine(torch.cat(Ug), torch.cat(g))


def epoch_again(config: TrainConfig) -> dict[str, Any]:
    """The first epoch, step by step."""
    eye = Eye()
    run = trainer(config, eye)
    llqr = preconditioner(run)
    rows: Rows = []
    kept: dict[str, Rows] = {}
    for step in range(run.steps_per_epoch):
        before, refits, eye.looking = flat_weights(run), llqr.param_groups[0]["llqr_refits"], 0.0
        start, meters = time.process_time(), run.meters.clone()
        run.train_step()
        seconds = time.process_time() - start - eye.looking
        moved = flat_weights(run) - before
        refitted = llqr.param_groups[0]["llqr_refits"] > refits
        if refitted:
            kept[str(step)] = eye.blocks
        rows.append({
            "step": step,
            "loss": averages(run.meters - meters)["loss"],
            "lr": run.optimizer.param_groups[0]["lr"],
            "gradient": float(eye.first.norm()),
            "second_gradient": float(eye.second.norm()),
            "cosine_gradients": cosine(eye.first, eye.second),
            "radius": run.radius,
            "move": float(moved.norm()),
            "cosine_move": cosine(-moved, eye.second),
            "weights": float(before.norm()),
            "refit": refitted,
            "seconds": seconds,
        })
    chosen = {step: kept[step] for step in (min(kept, key=int), max(kept, key=int))}
    return {"steps": rows, "refits": sorted(map(int, kept)), "blocks": chosen, **averages(run.totals())}


def published_first_step(config: TrainConfig) -> dict[str, Any]:
    """Step 0 of the published method: its products, and where they leave U."""
    eye, products = Eye(), 0
    run = trainer(config, eye)

    def count(_: str) -> contextlib.AbstractContextManager[None]:
        nonlocal products
        products += 1
        return contextlib.nullcontext()

    with observed(count):
        start = time.process_time()
        run.train_step()
        seconds = time.process_time() - start - eye.looking
    start, eye.looking = time.process_time(), 0.0
    run.train_step()
    return {
        "products": products,
        "blocks": eye.blocks,
        "seconds": seconds,
        "seconds_next": time.process_time() - start - eye.looking,
    }


def at_the_end(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """U where the run left it, on a batch like a probe."""
    saved = checkpoint.load(folder, print)
    assert saved is not None
    run = trainer(config)
    llqr = preconditioner(run)
    run.load(saved)
    inputs, targets = run.probe()
    rises = {
        mode: rise(run, inputs, targets, training=mode == "training") for mode in ("evaluation", "training")
    }
    found = {
        "rises": rises,
        "cosine": preconditioned_cosine(llqr),
        "blocks": whole(llqr),
        "quadratic_gain": llqr.quadratic_gain(inputs, targets),
        "refits": int(llqr.param_groups[0]["llqr_refits"]),
        "weights": float(flat_weights(run).norm()),
        "gradient": float(flat_gradient(run).norm()),
        "checkpoint_numbers": _numbers(saved["model"], saved["optimizer"]),
    }
    run.optimizer.zero_grad()
    return found


def rise(run: Trainer, inputs: Tensor, targets: Tensor, *, training: bool) -> dict[str, float]:
    """The loss, and how far it rises at distance rho along g and along U g; leaves the gradients there."""

    def loss() -> Tensor:
        found: Tensor = run.loss_fn(run.model(inputs), targets)
        return found

    run.optimizer.zero_grad()
    run.model.train(training)
    with frozen_batch_stats(run.model):
        here = loss()
        torch.autograd.backward(here)
        found = {"loss": float(here.detach())}
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        preconditioned = [s for s in preconditioner(run).preconditioned_gradients() if s is not None]
        weights = [p.detach().clone() for p in run.model.parameters()]
        with torch.no_grad():
            for name, direction in (("g", gradients), ("Ug", preconditioned)):
                length = torch.cat([d.flatten() for d in direction]).norm() / run.config.optimizer.rho
                for p, w, d in zip(run.model.parameters(), weights, direction, strict=True):
                    p.copy_(w + d / length)
                found[name] = float(loss()) - found["loss"]
            for p, w in zip(run.model.parameters(), weights, strict=True):
                p.copy_(w)
    return found


def _numbers(model: dict[str, Tensor], optimizer: dict[str, Any]) -> dict[str, int]:
    """How many numbers a checkpoint holds, by what they are."""
    kinds = {"model": sum(t.numel() for t in model.values())}
    for entries in optimizer["state"].values():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                kinds[name] = kinds.get(name, 0) + value.numel()
    return kinds


def main(options: Options) -> Path:
    """Train, look, compare, store."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    words = ["train", "--preset", options.preset, "--optimizer", METHOD, *options.extra]
    words += ["--data-path", options.data_path, "--out", str(options.out)]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = cli.main(words)
    print(shown.getvalue())
    if code:
        raise RuntimeError(f"the run ended with {code}.")
    found = record.read(options.out)
    config = as_now({**found["config"], "data_path": options.data_path}, options.out)
    epoch = epoch_again(config)
    first = found["metrics"][0]
    for name in ("loss", "accuracy"):
        if abs(epoch[name] - first[f"train_{name}"]) > 1e-5:
            raise RuntimeError(
                f"{name} of the first epoch: {epoch[name]} again, {first[f'train_{name}']} before."
            )
    results = record.rounded({
        "record": found,
        "printed": shown.getvalue().replace(str(options.out), "OUT").splitlines(),
        "first_epoch": epoch,
        "published": published_first_step(config.replace(optimizer=PUBLISHED, **_published(options.preset))),
        "end": at_the_end(config, options.out),
    })
    protocol = {
        "command": "python -m book.experiments.machines_run --data-path DATA --out RUNS",
        "environment": environment(Machine()),
        "seed": found["seed"],
    }
    return store("machines_run", protocol, results, time.perf_counter() - start, options.results or RESULTS)


def _published(preset: str) -> dict[str, Any]:
    """The published method's own settings of a preset."""
    from llqr_sam_ref.train.presets import configured

    settings = configured(preset, PUBLISHED).optimizer
    return {name: getattr(settings, name) for name in ("lr", "nesterov", "weight_decay", "llqr")}


if __name__ == "__main__":
    main(tyro.cli(Options))
