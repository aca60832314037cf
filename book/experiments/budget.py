"""What a budget for bases buys: loss and time against the share of a gradient that they may cost.

    python -m book.experiments.budget      writes book/results/budget.json, in ten minutes on one core

One limit holds for the blocks of all sides, from none to the default. All train with the same rate, seeds and batches.
"""

from __future__ import annotations

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
from llqr_sam_ref.optim.budget import cost, within_overhead
from llqr_sam_ref.train.record import rounded
from llqr_sam_ref.train.seeds import derived_seed, generator

WHERE = ("decoder", "autoencoder-wide", "vit")
LIMITS = (0, 8, 16, 32, 64, 128)
SEEDS = (400, 401, 402)
LR = 0.004


@dataclass(frozen=True)
class Options:
    """What is run.

    Args:
        tasks: which.
        limits: which.
        seeds: how many of the three.
        steps: of a run; None for the task's own number.
        store: whether the result is written.
    """

    tasks: tuple[str, ...] = WHERE
    limits: tuple[int, ...] = LIMITS
    seeds: int = len(SEEDS)
    steps: int | None = None
    store: bool = True


def gradient(here: Problem) -> float:
    """Operations of a gradient, counted."""
    model, source = _fresh(here, SEEDS[0]), generator(SEEDS[0], "batches")

    def closure() -> None:
        inputs, targets = here.data.draw(source, here.batch)
        _loss(here, model, inputs, targets).backward()  # type: ignore[no-untyped-call]

    return within_overhead(0.0, model, closure).gradient


def _fresh(here: Problem, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return here.model()


def _loss(here: Problem, model: torch.nn.Module, inputs: Any, targets: torch.Tensor) -> torch.Tensor:
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    loss: torch.Tensor = here.loss(outputs, targets)
    return loss


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
        For every task the operations of a gradient, and a row for every limit.
    """
    results: dict[str, Any] = {}
    bar = tqdm(total=len(options.tasks) * options.seeds * len(options.limits))
    for name in options.tasks:
        here, steps = problem(name), options.steps or TASKS[name].steps
        configs = {limit: LLQRConfig(max_side=limit) for limit in options.limits}
        runs: dict[int, list[dict[str, Any]]] = {limit: [] for limit in configs}
        for seed in SEEDS[: options.seeds]:  # neighbors in time share the machine's mood
            for limit, config in configs.items():
                runs[limit].append(train(here, config, seed, steps))
                bar.update()
        whole, model = gradient(here), here.model()
        results[name] = {
            "gradient": whole,
            "rows": [
                {"limit": limit, "overhead": cost(model, config, limit) / whole, "runs": runs[limit]}
                for limit, config in configs.items()
            ],
        }
    return results


def measured(rows: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """What the bases of a row take beyond a step without any, over a gradient: the median over seeds, in time."""
    bare = next(r for r in rows if r["limit"] == 0)
    shares = [
        (run["step_ms"] - none["step_ms"]) / run["gradient_ms"]
        for run, none in zip(row["runs"], bare["runs"], strict=True)
    ]
    return float(statistics.median(shares))


def main(options: Options) -> None:
    """Run everything, print and store."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results = study(options)
    for name, task in results.items():
        for row in task["rows"]:
            loss = statistics.fmean(run["final"] for run in row["runs"])
            share = measured(task["rows"], row)
            print(
                f"{name:18s} limit {row['limit']:3d} model {row['overhead']:.3f} time {share:.3f} loss {loss:.4f}"
            )
    if options.store:
        protocol = {"command": "python -m book.experiments.budget", "seeds": SEEDS, "lr": LR}
        print(store("budget", protocol, rounded(results), time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
