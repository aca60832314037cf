"""What the methods cost, row after row (hence the length): ratios measured in one process, the table of `make bench`.

    python -m book.experiments.bench                 writes book/results/bench.json; twenty minutes on one core
    python -m book.experiments.bench --quick         small sizes: shows that it runs, its ratios mean nothing

Every ratio is one of lower quartiles over interleaved repeats after a warm-up, one thread. Both clocks are kept; on
a CPU the process's own time counts, because it does not wait for who else uses the cores. What happens every K steps is
amortized by arithmetic: (step + refit/K) over the step of the base, step and refit measured apart.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_optimizer
import torch
import tyro
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from book.experiments.store import RESULTS, store
from book.experiments.timing import Claim, Seconds, Share, Stopwatch, Work, row, table
from llqr_sam_ref import LLQR, SAM, LLQRConfig, Monge, frozen_batch_stats
from llqr_sam_ref.config import ClosedForm, InnerLoop
from llqr_sam_ref.exact import lqr
from llqr_sam_ref.exact.clock import refits_between
from llqr_sam_ref.nets.resnet import BasicBlock, ResNet, resnet18
from llqr_sam_ref.optim.curvature import Linearization, observed
from llqr_sam_ref.optim.structures import STRUCTURES, TwoSided

Batch = tuple[Tensor, Tensor]
Rows = list[dict[str, Any]]
Wrap = Callable[[Optimizer, nn.Module], Optimizer]


@dataclass(frozen=True)
class Options:
    """Command line of the benchmark.

    Args:
        quick: small sizes and few repeats.
        device: "cpu", "cuda", ...
        folder: where bench.json goes; None is book/results, or nowhere when quick.
    """

    quick: bool = False
    device: str = "cpu"
    folder: Path | None = None

    @property
    def rounds(self) -> int:
        """Repeats of what is cheap."""
        return 2 if self.quick else 7

    def model(self) -> ResNet:
        """ResNet-18 with the stem for small images; a miniature of it when quick."""
        torch.manual_seed(0)
        model = ResNet(BasicBlock, (1, 1), width=8) if self.quick else resnet18()
        return model.to(self.device)

    def batch(self, size: int) -> Batch:
        """Random images and labels."""
        size, side = (8, 8) if self.quick else (size, 32)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(size, 3, side, side, generator=generator)
        y = torch.randint(10, (size,), generator=generator)
        return x.to(self.device), y.to(self.device)

    @property
    def inner_steps(self) -> int:
        """Of a refit by the inner loop."""
        return 2 if self.quick else 50


def backward(opt: Optimizer, model: nn.Module, batch: Batch) -> None:
    """One forward and backward pass."""
    opt.zero_grad()
    cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]


def training_step(opt: Optimizer, model: nn.Module, batch: Batch) -> Work:
    """One step of the plain loop, or of the loop with two passes."""

    def work() -> None:
        backward(opt, model, batch)
        if isinstance(opt, SAM):
            with opt.perturbed(), frozen_batch_stats(model):
                backward(opt, model, batch)
        opt.step()

    return work


def step_of(options: Options, batch: Batch, wrap: Wrap) -> Work:
    """A training step of a wrapped SGD with momentum on a model of its own."""
    model = options.model()
    return training_step(wrap(sgd(model), model), model, batch)


def sgd(model: nn.Module) -> Optimizer:
    """The base of everything."""
    return SGD(model.parameters(), lr=1e-3, momentum=0.9)


def peer_step(options: Options, batch: Batch) -> Work:
    """A step of pytorch_optimizer's SAM, by its own two calls."""
    model = options.model()
    opt: Any = pytorch_optimizer.SAM(model.parameters(), SGD, rho=0.05, lr=1e-3, momentum=0.9)

    def work() -> None:
        backward(opt, model, batch)
        opt.first_step(zero_grad=True)
        cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        opt.second_step()

    return work


def sam_steps(options: Options, watch: Stopwatch) -> Rows:
    """SAM and M-SAM over the plain loop and over a peer."""
    batch = options.batch(64)
    works = {
        "base": step_of(options, batch, lambda base, _: base),
        "SAM": step_of(options, batch, lambda base, _: SAM(base, rho=0.05)),
        "M-SAM": step_of(options, batch, lambda base, _: SAM(base, rho=0.05, metric=Monge())),
        "peer": peer_step(options, batch),
    }
    Stopwatch(options.device).run(works, 1)
    watch.run(works, 2 * options.rounds)  # a limit of one percent wants more of them
    claims = [
        Claim("SAM step / base step", lambda t: t["SAM"] / t["base"], 2.05, limit="2.00"),
        Claim("M-SAM step / base step", lambda t: t["M-SAM"] / t["base"], 2.05, limit="2.00"),
        Claim("SAM step / pytorch_optimizer's SAM step", lambda t: t["SAM"] / t["peer"], 1.01, limit="1.00"),
        Claim(
            "M-SAM step / pytorch_optimizer's SAM step", lambda t: t["M-SAM"] / t["peer"], 1.01, limit="1.00"
        ),
    ]
    return [claim.row(watch) for claim in claims]


def products(options: Options, watch: Stopwatch) -> Rows:
    """Curvature products on a probe of 16, in forward and backward passes of the same batch."""
    model, batch = options.model().eval(), options.batch(16)
    parameters = list(model.parameters())
    linearization = Linearization(model, cross_entropy, *batch)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    works: dict[str, Work] = {
        "pass": lambda: torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), parameters),
        "set-up": linearization.relinearize,
        "GGN": lambda: linearization.ggn(v),
        "Fisher": lambda: linearization.fisher(v),
        "Hessian": lambda: linearization.hessian(v),
    }
    Stopwatch(options.device).run(works, 1)
    for _ in range(options.rounds):
        watch.run({name: works[name] for name in ("pass", "set-up")}, 1)
        linearization.ggn(v)  # what is set up at the first product is not the product
        linearization.hessian(v)
        watch.run({name: works[name] for name in ("GGN", "Fisher", "Hessian")}, 1)
    claims = [
        Claim("GGN product / forward+backward", lambda t: t["GGN"] / t["pass"], 1.40, limit="1.33"),
        Claim("Fisher product / forward+backward", lambda t: t["Fisher"] / t["pass"], 1.40, limit="1.33"),
        Claim(
            "set-up again, once a refit / forward+backward",
            lambda t: t["set-up"] / t["pass"],
            1.00,
            limit="0.33",
        ),
        Claim("Hessian product / forward+backward", lambda t: t["Hessian"] / t["pass"], 2.20, limit="2.00"),
    ]
    return [claim.row(watch) for claim in claims]


def published(options: Options, watch: Stopwatch) -> Rows:
    """The published LLQR, with and without SAM: 50 inner steps on a diagonal every 1000 steps.

    Inner steps cost the same one by one, so a refit of T steps is a refit of none and T times a quarter of what four
    steps add: short enough to be interleaved with what it is compared with.
    """
    batch, few, solver = options.batch(64), 4, InnerLoop(positive=False)
    config = LLQRConfig.published(solver=solver)
    model = options.model()
    llqr = LLQR(sgd(model), model, cross_entropy, config)

    def refit(inner_steps: int) -> Work:
        def work() -> None:
            llqr.config = config.replace(steps=inner_steps)
            llqr.refit(*batch)

        return work

    works = {
        "base": step_of(options, batch, lambda base, _: base),
        "LLQR": training_step(llqr, model, batch),
        "LLQR+SAM": step_of(
            options, batch, lambda base, m: SAM(LLQR(base, m, cross_entropy, config), rho=0.05)
        ),
        "refit, set-up": refit(0),
        "refit, 4 inner steps": refit(few),
    }
    Stopwatch(options.device).run(works, 1)
    watch.run(works, 2 * options.rounds)

    def refits(t: Seconds) -> float:
        """What refits add to the average step."""
        inner = (t["refit, 4 inner steps"] - t["refit, set-up"]) / few
        return (t["refit, set-up"] + solver.steps * inner) / config.every

    claims = [
        Claim(
            "LLQR published (diagonal, 50 inner steps per 1000) / base",
            lambda t: (t["LLQR"] + refits(t)) / t["base"],
            1.09,
            limit="1.07",
        ),
        Claim("  of which the step", lambda t: t["LLQR"] / t["base"]),
        Claim("  of which refits", lambda t: refits(t) / t["base"]),
        Claim(
            "LLQR+SAM published / base",
            lambda t: (t["LLQR+SAM"] + refits(t)) / t["base"],
            2.15,
            limit="2.07",
        ),
    ]
    return [claim.row(watch) for claim in claims]


def sampled(options: Options, watch: Stopwatch) -> Rows:
    """LLQR learning from sampled probe batches: a refit every 10 steps, of which one in 5 computes eigenvectors."""
    batch, model, config = options.batch(128), options.model(), LLQRConfig.sampled()
    assert isinstance(config.solver, ClosedForm)
    period = refits_between(config.solver.basis_every, config.every)
    llqr = LLQR(sgd(model), model, cross_entropy, config)
    steps = {
        "base": step_of(options, batch, lambda base, _: base),
        "LLQR": training_step(llqr, model, batch),
    }
    warm_up = Stopwatch(options.device)
    warm_up.run({**steps, "refit": lambda: llqr.refit(*batch)}, 2)  # the first two both compute eigenvectors
    for refit in range(3, 3 + 2 * period):  # two whole periods
        name = "refit with bases" if refit % period == 0 else "refit"
        watch.run({**steps, name: lambda: llqr.refit(*batch)}, 1)
    share = 1 / period

    def refits(t: Seconds) -> float:
        """What refits add to the average step."""
        return ((1 - share) * t["refit"] + share * t["refit with bases"]) / config.every

    claims = [
        Claim(
            "LLQR sampled (every 10, max_side 1024) / base, batch 128",
            lambda t: (t["LLQR"] + refits(t)) / t["base"],
            1.25,
            limit="1.10 + algebra",
        ),
        Claim("  of which the step, sampled", lambda t: t["LLQR"] / t["base"]),
        Claim("  of which refits, sampled", lambda t: refits(t) / t["base"]),
    ]
    return [claim.row(watch) for claim in claims]


def kronecker_refit(options: Options, watch: Stopwatch) -> Rows:
    """A refit with full Kronecker factors by the inner loop: what its curvature products cost, and all the rest."""
    model, batch = options.model(), options.batch(16)
    config = LLQRConfig.published(structure="kronecker", steps=1)
    llqr = LLQR(sgd(model), model, cross_entropy, config)
    llqr.refit(*batch)  # traces
    llqr.config = config.replace(steps=options.inner_steps)
    for _ in range(2):
        share = Share(watch)
        with observed(share.around):
            watch.run({"refit": lambda: llqr.refit(*batch)}, 1)
        watch.add("products", *share.seconds)
    claim = Claim(
        "Kronecker refit (50 inner steps, probe 16): algebra / curvature products",
        lambda t: (t["refit"] - t["products"]) / t["products"],
        1.00,
    )
    return [claim.row(watch)]


def exact_lqr(options: Options, watch: Stopwatch) -> Rows:
    """The exact sweep over depth, 72 weights a layer, and the dense solve of the same problem.

    ``lqr.solve`` certifies its minimum and checks the KKT conditions; NumPy's solve does neither, so that where the
    matrix is given it is compared with the sweeps alone.
    """
    depths, state, control = ((2, 4, 8), 3, 12) if options.quick else ((8, 16, 32, 64, 128), 8, 72)
    middle, deep = depths[-3], depths[-1]
    problems = {n: lqr.random_problem(n, state, control, np.random.default_rng(0)) for n in depths}
    matrix, slope = lqr.dense(problems[middle])
    works: dict[str, Work] = {f"sweep {n}": lambda p=p: lqr.solve(p) for n, p in problems.items()}  # type: ignore[misc]
    works["sweeps alone"] = lambda: lqr.stationary_point(problems[middle])
    works["dense solve"] = lambda: np.linalg.solve(matrix, -slope)
    works["dense matrix"] = lambda: lqr.dense(problems[middle])
    Stopwatch(options.device).run(works, 1)
    watch.run(works, 3 * options.rounds)
    sweep = f"sweep {middle}"
    claims = [
        Claim(
            f"exact LQR: time a layer at {deep} layers / at {middle}",
            lambda t: t[f"sweep {deep}"] / deep * middle / t[sweep],
            1.10,
            limit="1.00",
        ),
        Claim(
            f"dense solve / exact LQR at {middle} layers",
            lambda t: (t["dense matrix"] + t["dense solve"]) / t[sweep],
            at_least=20.0,
        ),
        Claim(
            "  the matrix given, nothing certified",
            lambda t: t["dense solve"] / t["sweeps alone"],
            at_least=20.0,
        ),
    ]
    return [claim.row(watch) for claim in claims]


def memory(options: Options, watch: Stopwatch) -> Rows:
    """Numbers kept between steps beyond the base's, a weight: counted in live tensors, and for every structure of U."""
    diagonal = LLQRConfig.published()
    methods: dict[str, tuple[int, Wrap]] = {
        "SAM": (1, lambda base, _: SAM(base, rho=0.05)),
        "LLQR published (diagonal)": (1, lambda base, m: LLQR(base, m, cross_entropy, diagonal)),
        "LLQR+SAM published": (2, lambda base, m: SAM(LLQR(base, m, cross_entropy, diagonal), rho=0.05)),
    }
    rows = []
    for what, (copies, wrap) in methods.items():
        kept = _kept(options, wrap)
        at_most = copies + 0.01  # a few numbers more
        rows.append(row(f"numbers kept a weight: {what}", kept, at_most=at_most, limit=f"{copies}.00"))
    for kind, make in (("U alone", LLQRConfig.published), ("U and its curvature", LLQRConfig)):
        for name, structure in STRUCTURES.items():
            two_sided = issubclass(structure, TwoSided)
            for side in (1024, None) if two_sided else (None,):
                limit = f", max_side {side}" if side else ", both sides full" if two_sided else ""
                kept = _stored(options, make(structure=name, max_side=side))
                rows.append(row(f"numbers kept a weight: {kind}, {name}{limit}", kept))
    return rows


def _kept(options: Options, wrap: Wrap) -> float:
    """Numbers in the tensors that are there after a step of a wrapped base and were not after one of the base."""
    model, batch = options.model(), options.batch(8)
    base = sgd(model)
    training_step(base, model, batch)()
    before = _live_numbers()
    opt = wrap(base, model)
    training_step(opt, model, batch)()
    return (_live_numbers() - before) / sum(p.numel() for p in model.parameters())


def _live_numbers() -> int:
    """Numbers in all live tensors, views not counted."""
    gc.collect()
    alive = [t for t in gc.get_objects() if type(t) in {Tensor, nn.Parameter}]
    return sum(t.numel() for t in alive if t._base is None)


def _stored(options: Options, config: LLQRConfig) -> float:
    """Numbers that LLQR keeps and saves, a weight; on tensors without data, as the largest fit nowhere."""
    model = options.model().to("meta")
    llqr = LLQR(sgd(model), model, cross_entropy, config)
    llqr.preconditioned_gradients()
    saved = [value for entries in llqr.state_dict()["state"].values() for value in entries.values()]
    weights = sum(p.numel() for p in model.parameters())
    return sum(value.numel() for value in saved if isinstance(value, Tensor)) / weights


SECTIONS = (sam_steps, products, published, sampled, kronecker_refit, exact_lqr, memory)


def environment(options: Options) -> dict[str, Any]:
    """Where it ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": options.device,
        "device_name": torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else (names or [""])[0],
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "clock": Stopwatch(options.device).clock,
        "pytorch_optimizer": version("pytorch_optimizer"),
    }


def main(options: Options) -> Path | None:
    """Run all sections, print the table, write the JSON file."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    rows: Rows = []
    seconds: dict[str, Any] = {}
    with threadpool_limits(1):
        for section in SECTIONS:
            watch = Stopwatch(options.device)
            found = section(options, watch)
            rows += found
            seconds[section.__name__] = watch.seconds
            print(table(found), flush=True)
    print(f"\n{table(rows)}")
    folder = options.folder or (None if options.quick else RESULTS)
    if folder is None:
        return None
    protocol = {
        "command": "python -m book.experiments.bench" + (" --quick" if options.quick else ""),
        "environment": environment(options),
    }
    results = {"rows": rows, "seconds": seconds}
    return store("bench", protocol, results, time.perf_counter() - start, folder)


if __name__ == "__main__":
    main(tyro.cli(Options))
