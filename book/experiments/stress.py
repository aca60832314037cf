"""What breaks the default: tasks of every kind under strain, nothing retuned.

    python -m book.experiments.stress      writes book/results/stress.json, in half an hour on one core

Every task of the peers' table trains under every strain that applies to it, with three seeds, with the settings of
an untouched run: one learning rate for all tasks, the defaults for the rest. AdamW runs beside it at its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from book.experiments.peers.data import Data
from book.experiments.peers.methods import METHODS
from book.experiments.peers.run import Setting, run
from book.experiments.peers.tasks import Problem, problem
from book.experiments.store import store
from llqr_sam_ref.nets.attention import Attention
from llqr_sam_ref.nets.mlp import mlp

STEPS, SEEDS = 100, tuple(range(300, 303))
SHORT = 40  # steps where a step is long
TASKS = ("mlp", "autoencoder", "resnet-group", "resnet-batch", "vit", "decoder", "translation")
SETTINGS = {
    "llqr": Setting(0.004, 0.0, 0.1),
    "llqr-sam": Setting(0.004, 0.0, 0.05),
    "adamw": Setting(0.003, 0.0, 0.1),
}
FRESH_WORDS = 500  # rows of an embedding that no example ever asks for
DEAD = 0.25  # share of inputs that are zero


@dataclass(frozen=True)
class Strain:
    """One way to make training harder.

    Args:
        about: what it is.
        change: the problem under strain, or None where it does not apply.
        lr: factor of the learning rate.
        steps: of a run.
    """

    about: str
    change: Callable[[Problem], Problem | None]
    lr: float = 1.0
    steps: int = STEPS


def as_it_is(problem: Problem) -> Problem:
    return problem


def weights_times(factor: float) -> Callable[[Problem], Problem]:
    """Initial matrices and convolutions are larger or smaller."""

    def changed(problem: Problem) -> Problem:
        def model() -> nn.Module:
            made = problem.model()
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.mul_(factor if parameter.ndim > 1 else 1.0)
            return made

        return replace(problem, model=model)

    return changed


def inputs_times(factor: float) -> Callable[[Problem], Problem | None]:
    """Numbers at the input are larger or smaller; tokens have no size."""
    return lambda problem: _on_inputs(problem, lambda x: x * factor)


def dead_inputs(problem: Problem) -> Problem | None:
    """A part of the inputs is always zero, so that a part of the first layer never has a gradient."""

    def silenced(x: Tensor) -> Tensor:
        flat = x.flatten(1).clone()
        flat[:, : int(DEAD * flat.shape[1])] = 0.0
        return flat.view_as(x)

    return _on_inputs(problem, silenced)


def _on_inputs(problem: Problem, change: Callable[[Tensor], Tensor]) -> Problem | None:
    inputs, _ = problem.data.validation
    if isinstance(inputs, tuple) or not inputs.is_floating_point():
        return None

    def drawn(source: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        x, y = problem.data.draw(source, size)
        return change(x), y

    (x, y), (u, v) = problem.data.validation, problem.data.test
    return replace(problem, data=Data(drawn, (change(x), y), (change(u), v)))


class Scaled(nn.Module):
    """A loss in other units."""

    def __init__(self, loss: nn.Module, factor: float) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor
        self.ignore_index = getattr(loss, "ignore_index", None)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.factor * self.loss(outputs, targets)
        return value


def loss_times(factor: float) -> Callable[[Problem], Problem]:
    return lambda problem: replace(problem, loss=Scaled(problem.loss, factor))


def batch_of(size: int) -> Callable[[Problem], Problem]:
    return lambda problem: replace(problem, batch=size)


def wrong_labels(problem: Problem) -> Problem | None:
    """Four of ten labels of every batch are drawn at random."""
    _, labels = problem.data.validation
    if labels.is_floating_point() or labels.ndim > 1:
        return None
    classes = int(labels.max()) + 1

    def drawn(source: torch.Generator, size: int) -> tuple[Any, Tensor]:
        x, y = problem.data.draw(source, size)
        other = torch.randint(classes, y.shape, generator=source)
        return x, torch.where(torch.rand(y.shape, generator=source) < 0.4, other, y)

    return replace(problem, data=replace(problem.data, draw=drawn))


def unseen_rows(problem: Problem) -> Problem | None:
    """Embeddings have five hundred more rows than there are tokens."""
    if not any(isinstance(module, nn.Embedding) for module in problem.model().modules()):
        return None

    def model() -> nn.Module:
        made = problem.model()
        for module in made.modules():
            if isinstance(module, nn.Embedding):
                fresh = torch.randn(FRESH_WORDS, module.embedding_dim) * module.weight.detach().std()
                module.weight = nn.Parameter(torch.cat([module.weight.detach(), fresh]))
                module.num_embeddings += FRESH_WORDS
        return made

    return replace(problem, model=model)


def key_biases(problem: Problem) -> Problem | None:
    """Biases of attention's keys, whose gradient is rounding alone, are there and far from zero."""
    if not any(isinstance(module, Attention) for module in problem.model().modules()):
        return None

    def model() -> nn.Module:
        made = problem.model()
        with torch.no_grad():
            for module in made.modules():
                if isinstance(module, Attention):
                    module.key.bias.fill_(1.0)
        return made

    return replace(problem, model=model)


def odd_shapes(problem: Problem) -> Problem | None:
    """Layers of 1, 2, 3 and of 1500 units in one network, whose narrow ones have a path around them."""
    inputs, labels = problem.data.validation
    if isinstance(inputs, tuple) or inputs.ndim != 2 or not inputs.is_floating_point() or labels.ndim != 1:
        return None
    wide, classes = inputs.shape[1], int(labels.max()) + 1

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.ModuleList(mlp((wide, units, wide), activation="tanh") for units in (1, 2, 3))
            self.broad = mlp((wide, 1500, classes), activation="tanh")
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.narrow:
                x = x + part(x)
            result: Tensor = self.gain * self.broad(x)
            return result

    return replace(problem, model=Odd)


STRAINS: dict[str, Strain] = {
    "none": Strain("as it is", as_it_is),
    "weights x 3": Strain("initial weights 3 times as large", weights_times(3.0)),
    "weights x 0.2": Strain("initial weights a fifth as large", weights_times(0.2)),
    "inputs x 10": Strain("inputs 10 times as large", inputs_times(10.0)),
    "inputs x 0.1": Strain("inputs a tenth as large", inputs_times(0.1)),
    "loss x 1000": Strain("loss 1000 times as large", loss_times(1000.0)),
    "loss x 0.001": Strain("loss a thousandth as large", loss_times(0.001)),
    "batch 1": Strain("one example a batch", batch_of(1)),
    "batch 8": Strain("8 examples a batch", batch_of(8)),
    "batch 512": Strain("512 examples a batch", batch_of(512), steps=SHORT),
    "rate x 4": Strain("learning rate 4 times as large", as_it_is, lr=4.0),
    "odd shapes": Strain("layers of 1 and of 1500 units", odd_shapes),
    "dead inputs": Strain("a quarter of the inputs is zero", dead_inputs),
    "unseen rows": Strain("500 embedding rows that nobody asks for", unseen_rows),
    "wrong labels": Strain("40 % of the labels are random", wrong_labels),
    "key biases": Strain("biases of keys far from zero", key_biases),
}


def strained(name: str, strain: Strain) -> Problem | None:
    """A task under a strain; None where that does not apply."""
    return strain.change(problem(name))


@dataclass(frozen=True)
class Options:
    """What is run.

    Args:
        tasks: which.
        strains: which.
        methods: which.
        seeds: how many of the three.
        steps: of a run at most, for a trial.
        store: whether the result is written.
    """

    tasks: tuple[str, ...] = TASKS
    strains: tuple[str, ...] = tuple(STRAINS)
    methods: tuple[str, ...] = tuple(SETTINGS)
    seeds: int = len(SEEDS)
    steps: int = STEPS
    store: bool = True


def study(options: Options) -> dict[str, Any]:
    """All runs.

    Args:
        options: which.

    Returns:
        For every strain and task the runs of every method: where the loss began and ended, its lowest and highest
        block, and why a run counts as diverged ("" if it does not).
    """
    pairs = [(s, t) for s in options.strains for t in options.tasks if strained(t, STRAINS[s]) is not None]
    results: dict[str, Any] = {}
    for name, task in tqdm(pairs):
        strain = STRAINS[name]
        here = strained(task, strain)
        assert here is not None
        results.setdefault(name, {})[task] = {
            method: _runs(here, strain, method, options) for method in options.methods
        }
    return results


def _runs(here: Problem, strain: Strain, method: str, options: Options) -> list[dict[str, Any]]:
    setting = replace(SETTINGS[method], lr=strain.lr * SETTINGS[method].lr)
    rows = []
    for seed in SEEDS[: options.seeds]:
        found = run(here, METHODS[method], setting, seed, min(strain.steps, options.steps))
        curve = found["curve"]
        rows.append({
            "diverged": found["diverged"],
            "first": curve[0] if curve else None,
            "final": found["final"] if curve else None,
            "highest": max(curve) if curve else None,
        })
    return rows


def counts(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    """For every method how many runs there were and how many diverged."""
    found: dict[str, dict[str, int]] = {}
    for tasks in results.values():
        for methods in tasks.values():
            for method, runs in methods.items():
                row = found.setdefault(method, {"runs": 0, "diverged": 0})
                row["runs"] += len(runs)
                row["diverged"] += sum(bool(r["diverged"]) for r in runs)
    return found


def ratio(runs: list[dict[str, Any]]) -> float:
    """The median over seeds of the final loss as a share of the first block's; infinite where most runs diverged."""
    return statistics.median(float("inf") if r["diverged"] else r["final"] / r["first"] for r in runs)


def main(options: Options) -> None:
    """Run everything, print what diverged, and store."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results = study(options)
    for name, tasks in results.items():
        for task, methods in tasks.items():
            print(f"{name:14s} {task:14s}", {m: round(ratio(runs), 3) for m, runs in methods.items()})
            for method, runs in methods.items():
                for seed, r in zip(SEEDS, runs, strict=False):
                    if r["diverged"]:
                        print("    diverged:", method, seed, r["diverged"])
    print(counts(results))
    if options.store:
        protocol = {
            "command": "python -m book.experiments.stress",
            "seeds": SEEDS[: options.seeds],
            "steps": options.steps,
            "settings": {m: vars(SETTINGS[m]) for m in options.methods},
        }
        print(
            store(
                "stress", protocol, {"counts": counts(results), "runs": results}, time.perf_counter() - start
            )
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
