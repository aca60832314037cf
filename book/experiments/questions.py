"""Which radius for which base, and when: SAM over SGD, AdamW and LLQR on digits with 400 of 1000 labels wrong.

    python -m book.experiments.questions      writes book/results/questions.json, in half an hour on one core

For each base and radius the learning rate and the decay are searched on a grid with three tuning seeds; the best
mean accuracy on the validation set, whose labels are right, decides. With fresh seeds then run, for each base, its
best setting without a question, its best one with, and the second with questions in the first or the last quarter
of training only, or at every fifth step. Seeds and data are those of ``digits_noise``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm  # type: ignore[import-untyped]

from book.experiments.digits_noise import (
    STEPS,
    WIDTHS,
    batches,
    initial_weights,
    learning_rate,
    splits,
    wrong_labels,
)
from book.experiments.store import store
from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.optim import LLQR, SAM
from llqr_sam_ref.optim.metric import Metric

RADII = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
TUNING_SEEDS, FRESH_SEEDS = tuple(range(3)), tuple(range(200, 210))
RATES = {
    "sgd": (0.05, 0.1, 0.2, 0.4),
    "adamw": (0.001, 0.002, 0.004, 0.008, 0.016),
    "llqr": (0.001, 0.002, 0.004, 0.008),
}
DECAYS = {"sgd": (2e-3, 1e-2, 2e-2), "adamw": (1e-2, 1.0, 2.0), "llqr": (1e-2, 1.0, 3.0, 6.0)}
QUARTER = STEPS // 4


@dataclass(frozen=True)
class Setting:
    """One run's settings.

    Attributes:
        base: "sgd", "adamw" or "llqr".
        lr: its learning rate, under a cosine schedule.
        wd: its decay; coupled for SGD, beside the step for the others.
        rho: radius of the question, in weights; 0 asks nothing.
        start: steps before the first question.
        stop: steps after which none is asked.
        every: a question at one of so many steps.
    """

    base: str
    lr: float
    wd: float
    rho: float = 0.0
    start: int = 0
    stop: int = STEPS
    every: int = 1


def _llqr(model: nn.Module, lr: float, wd: float) -> Optimizer:
    return LLQR(
        torch.optim.SGD(model.parameters(), lr=lr, weight_decay=wd, momentum=0.9, nesterov=True), model
    )


BASES: dict[str, Callable[[nn.Module, float, float], Optimizer]] = {
    "sgd": lambda model, lr, wd: torch.optim.SGD(model.parameters(), lr=lr, weight_decay=wd, momentum=0.9),
    "adamw": lambda model, lr, wd: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=wd),
    "llqr": _llqr,
}


def variants(best: Setting) -> dict[str, Setting]:
    """The ways to ask that are compared with fresh seeds."""
    return {
        "always": best,
        "first quarter": replace(best, stop=QUARTER),
        "last quarter": replace(best, start=STEPS - QUARTER),
        "every fifth step": replace(best, every=5),
    }


def train(
    setting: Setting,
    seed: int,
    metric: Metric | None = None,
    look: Callable[[int, nn.Module], object] | None = None,
) -> dict[str, float]:
    """One run.

    Args:
        setting: of the optimizer.
        seed: decides initial weights, wrong labels and batches.
        metric: of the question; None for the base's own.
        look: is shown the network after every step, with the number of steps.

    Returns:
        Accuracies on validation and test data, loss on the training data, and how many gradients it took.
    """
    clean, validation, test = splits()
    labels, order = wrong_labels(clean.labels, seed), batches(seed)
    model = mlp(WIDTHS).double()
    with torch.no_grad():
        for p, value in zip(model.parameters(), initial_weights(seed), strict=True):
            p.copy_(value)
    base = BASES[setting.base](model, setting.lr, setting.wd)
    opt = base
    if setting.rho:
        opt = SAM(base, setting.rho, metric=metric, start=setting.start, every=setting.every)
    gradients = 0

    def backward(chosen: Tensor) -> None:
        nonlocal gradients
        gradients += 1
        opt.zero_grad()
        loss = cross_entropy(model(clean.inputs[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]

    for step, chosen in enumerate(order):
        for group in opt.param_groups:
            group["lr"] = setting.lr * learning_rate(step)
        backward(chosen)
        if isinstance(opt, SAM) and opt.perturbation_due and step < setting.stop:
            with opt.perturbed():
                backward(chosen)
        opt.step()
        if look is not None:
            look(step + 1, model)

    def right(inputs: Tensor, labels: Tensor) -> float:
        return float((model(inputs).argmax(1) == labels).double().mean())

    with torch.no_grad():
        return {
            "validation": right(*validation),
            "test": right(*test),
            "loss": float(cross_entropy(model(clean.inputs), labels)),
            "gradients": gradients,
        }


def _mean(rows: Iterable[dict[str, float]], key: str) -> float:
    values = [row[key] for row in rows]
    return sum(values) / len(values)


def search(base: str, rho: float, progress: Callable[[], object]) -> list[dict[str, Any]]:
    """All settings of a base at a radius, each with its mean validation accuracy, the best first."""
    found = []
    for lr, wd in itertools.product(RATES[base], DECAYS[base]):
        setting = Setting(base, lr, wd, rho)
        found.append({
            **asdict(setting),
            "validation": _mean(_runs(setting, TUNING_SEEDS, progress), "validation"),
        })
    return sorted(found, key=lambda row: -row["validation"])


def _runs(setting: Setting, seeds: Sequence[int], progress: Callable[[], object]) -> list[dict[str, float]]:
    rows = []
    for seed in seeds:
        rows.append(train(setting, seed))
        progress()
    return rows


def main() -> None:
    """Search, run the fresh seeds, and store everything."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    total = sum(len(RADII) * len(RATES[base]) * len(DECAYS[base]) * len(TUNING_SEEDS) for base in BASES)
    results: dict[str, Any] = {}
    with tqdm(total=total + len(BASES) * 5 * len(FRESH_SEEDS)) as bar:
        for base in BASES:
            searched = {rho: search(base, rho, bar.update) for rho in RADII}
            best = {
                rho: Setting(**{k: v for k, v in rows[0].items() if k != "validation"})
                for rho, rows in searched.items()
            }
            asking = best[max(RADII[1:], key=lambda rho: searched[rho][0]["validation"])]
            runs = {"never": best[0.0], **variants(asking)}
            results[base] = {
                "searched": [row for rows in searched.values() for row in rows],
                "fresh": {
                    name: {"setting": asdict(setting), "runs": _runs(setting, FRESH_SEEDS, bar.update)}
                    for name, setting in runs.items()
                },
            }
    protocol = {
        "command": "python -m book.experiments.questions",
        "tuning_seeds": TUNING_SEEDS,
        "fresh_seeds": FRESH_SEEDS,
    }
    store("questions", protocol, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
