"""What a budget for bases buys: loss and time against the share of a gradient that they may cost.

    python -m book.experiments.budget      writes book/results/budget.json, in a quarter of an hour on one core

On every task one plan is made per budget, after ten steps of a seed of its own. The control gives every side
of every matrix the same limit. All train with the same rate, damping, seeds and batches.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm  # type: ignore[import-untyped]

from book.experiments.peers.run import LAST, blocks, rate
from book.experiments.peers.tasks import TASKS, Problem, problem
from book.experiments.store import store
from llqr_sam_ref import LLQR, LLQRConfig
from llqr_sam_ref.optim.budget import Plan, operations, within_overhead
from llqr_sam_ref.optim.structures import EKFAC
from llqr_sam_ref.train.seeds import derived_seed, generator

WHERE = ("decoder", "autoencoder-wide", "vit")
BUDGETS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
LIMITS = (8, 16, 32, 64, 128)
PLANNED, SEEDS = 399, (400, 401, 402)
FIRST = 10  # steps before a plan is made
LR = 0.004


@dataclass(frozen=True)
class Options:
    """What is run.

    Args:
        tasks: which.
        budgets: which.
        limits: of the control.
        seeds: how many of the three.
        steps: of a run; None for the task's own number.
        store: whether the result is written.
    """

    tasks: tuple[str, ...] = WHERE
    budgets: tuple[float, ...] = BUDGETS
    limits: tuple[int, ...] = LIMITS
    seeds: int = len(SEEDS)
    steps: int | None = None
    store: bool = True


def plan(here: Problem, budget: float) -> Plan:
    """The plan of a budget, after the first steps of a run of its own: a head may begin at zero."""
    model, source = _fresh(here, PLANNED), generator(PLANNED, "batches")
    opt = LLQR(torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True), model)

    def closure() -> None:
        inputs, targets = here.data.draw(source, here.batch)
        opt.zero_grad()
        _loss(here, model, inputs, targets).backward()  # type: ignore[no-untyped-call]

    for _ in range(FIRST):
        closure()
        opt.step()
    return within_overhead(budget, model, closure)


def _fresh(here: Problem, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return here.model()


def _loss(here: Problem, model: torch.nn.Module, inputs: Any, targets: torch.Tensor) -> torch.Tensor:
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    loss: torch.Tensor = here.loss(outputs, targets)
    return loss


def predicted(here: Problem, config: LLQRConfig, gradient: float) -> float:
    """The model's overhead of a configuration that limits all sides alike."""
    total = 0.0
    for p in here.model().parameters():
        if p.ndim > 1:
            shape = (len(p), p[0].numel())
            structure = EKFAC(shape, False, config.max_side, config.wide)
            total += operations(shape, (structure.psi.width, structure.phi.width), config.solver)  # type: ignore[arg-type]
    return total / gradient


def train(here: Problem, config: LLQRConfig, seed: int, steps: int) -> dict[str, Any]:
    """One run: its final training loss, and what a gradient and a step take, in milliseconds of the processor."""
    model, source = _fresh(here, seed), generator(seed, "batches")
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True)
    opt = LLQR(base, model, config=config)
    schedule = LambdaLR(opt, lambda step: rate(step, steps))
    losses, gradients, moves = [], [], []
    for _ in range(steps):
        inputs, targets = here.data.draw(source, here.batch)
        start = time.process_time()
        opt.zero_grad()
        loss = _loss(here, model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        between = time.process_time()
        opt.step()
        gradients.append(between - start)
        moves.append(time.process_time() - between)
        schedule.step()
        losses.append(float(loss.detach()))
    curve = blocks(losses)
    return {
        "final": sum(curve[-LAST:]) / len(curve[-LAST:]),
        "gradient_ms": 1e3 * statistics.median(gradients),
        "step_ms": 1e3 * statistics.fmean(moves),
    }


def study(options: Options) -> dict[str, Any]:
    """All runs.

    Args:
        options: which.

    Returns:
        For every task the operations of a gradient, and rows for the budgets and for the limits.
    """
    results: dict[str, Any] = {}
    bar = tqdm(total=len(options.tasks) * options.seeds * (len(options.budgets) + len(options.limits)))
    for name in options.tasks:
        here, steps = problem(name), options.steps or TASKS[name].steps
        plans = {budget: plan(here, budget) for budget in options.budgets}
        gradient = next(iter(plans.values())).gradient
        rows = [
            {"budget": budget, "overhead": p.overhead, "widths": [[*c.shape, *c.widths] for c in p.choices]}
            for budget, p in plans.items()
        ]
        configs = [p.config for p in plans.values()]
        for limit in options.limits:
            configs.append(LLQRConfig(max_side=limit))
            rows.append({"limit": limit, "overhead": predicted(here, configs[-1], gradient)})
        runs: list[list[dict[str, Any]]] = [[] for _ in rows]
        for seed in SEEDS[: options.seeds]:  # neighbors in time share the machine's mood
            for config, found in zip(configs, runs, strict=True):
                found.append(train(here, config, seed, steps))
                bar.update()
        results[name] = {
            "gradient": gradient,
            "rows": [{**row, "runs": found} for row, found in zip(rows, runs, strict=True)],
        }
    return results


def measured(rows: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """What the bases of a row take beyond a step without any, over a gradient: the median over seeds, in time."""
    bare = next(r for r in rows if r.get("budget") == 0.0)
    return float(
        statistics.median(
            (run["step_ms"] - none["step_ms"]) / run["gradient_ms"]
            for run, none in zip(row["runs"], bare["runs"], strict=True)
        )
    )


def main(options: Options) -> None:
    """Run everything, print and store."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results = study(options)
    for name, task in results.items():
        for row in task["rows"]:
            loss = statistics.fmean(run["final"] for run in row["runs"])
            what = f"budget {row['budget']}" if "budget" in row else f"limit {row['limit']}"
            time_share = measured(task["rows"], row) if options.budgets[0] == 0.0 else math.nan
            print(f"{name:18s} {what:12s} model {row['overhead']:.3f} time {time_share:.3f} loss {loss:.4f}")
    if options.store:
        protocol = {
            "command": "python -m book.experiments.budget",
            "seeds": SEEDS,
            "planned": PLANNED,
            "lr": LR,
        }
        print(store("budget", protocol, results, time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
