"""Which flatness tells how well a network generalizes? Seven methods on wrong labels, compared at equal training loss.

    python -m book.experiments.flatness      writes book/results/flatness.json, in a quarter of an hour on one core

Networks, data, wrong labels and batches are those of ``digits_noise``. Decay is weak, so that every method goes on to
learn the wrong labels by heart; on the way its training loss passes the same levels, and at each level the network is
kept. There its sharpness is measured in six ways, and its loss on test data, whose labels are right. Does the order
of the one predict the order of the other? The control: every network is replaced by a twin, which computes the same
and has other weights. What a measure says of generalization must not depend on which of the two it was shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from book.experiments.digits_noise import (
    Data,
    gradients,
    losses,
    over_runs,
    splits,
    top_eigenvalue,
    wrong_labels,
)
from book.experiments.questions import Setting, train
from book.experiments.store import store
from llqr_sam_ref.optim import Monge
from llqr_sam_ref.train.record import rounded

LEVELS = (1.5, 1.3, 1.1)  # of the loss on all training data; the labels' own uncertainty is 1.55
EVERY = 5  # steps between two looks
SEEDS = tuple(range(300, 310))
METHODS = {
    "sgd": (Setting("sgd", 0.1, 1e-4), None),
    "sam": (Setting("sgd", 0.1, 1e-4, 0.1), None),
    "m-sam": (Setting("sgd", 0.1, 1e-4, 0.1), Monge()),
    "adamw": (Setting("adamw", 0.004, 1e-2), None),
    "adamw-sam": (Setting("adamw", 0.004, 1e-2, 0.05), None),
    "llqr": (Setting("llqr", 0.002, 1e-2), None),
    "llqr-sam": (Setting("llqr", 0.002, 1e-2, 0.05), None),
}
RADIUS, RELATIVE = 0.3, 0.3  # of the ball, in weights; and in units of each weight's own size
ASCENT, DRAWS, LANCZOS = 15, 20, 16  # steps, random directions, products
RESAMPLES = 500
Weights = list[Tensor]


def kept(method: str, seed: int, levels: Sequence[float] = LEVELS) -> dict[float, Weights]:
    """The weights with which a run first has a loss below each level, of those that it reaches."""
    clean = splits()[0]
    data = Data(clean.inputs[None], wrong_labels(clean.labels, seed)[None])
    found: dict[float, Weights] = {}

    def look(step: int, model: nn.Module) -> None:
        if step % EVERY or len(found) == len(levels):
            return
        weights = [p.detach()[None] for p in model.parameters()]
        loss = float(losses(weights, *data)[0])
        for level in levels:
            if loss <= level and level not in found:
                found[level] = [w[0].clone() for w in weights]

    setting, metric = METHODS[method]
    train(setting, seed, metric, look)
    return found


def twins(weights: Weights, generator: torch.Generator) -> Weights:
    """Of R networks: what comes into a hidden unit times a factor from 1/5 to 5, what goes out divided by it."""
    moved = [w.clone() for w in weights]
    for layer in range(0, len(weights) - 2, 2):
        units = weights[layer].shape[1]
        a = 5.0 ** (2 * torch.rand(len(weights[0]), units, generator=generator, dtype=torch.float64) - 1)
        moved[layer] *= a[:, :, None]
        moved[layer + 1] *= a
        moved[layer + 2] /= a[:, None, :]
    return moved


# Six measures of R networks, (R,).


def top(weights: Weights, data: Data) -> Tensor:
    """Largest eigenvalue of the Hessian."""
    return top_eigenvalue(weights, data, LANCZOS)[0]


def trace(weights: Weights, data: Data) -> Tensor:
    """Trace of the Hessian, by Hutchinson's estimate with random signs."""
    leaves = [w.detach().requires_grad_() for w in weights]
    slopes = torch.autograd.grad(losses(leaves, *data).sum(), leaves, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(weights[0]), dtype=torch.float64)
    for _ in range(DRAWS):
        signs = [torch.randint(2, w.shape[1:], generator=generator).double().mul(2).sub(1) for w in weights]
        along = sum((g * v).sum() for g, v in zip(slopes, signs, strict=True))
        assert isinstance(along, Tensor)
        products = torch.autograd.grad(along, leaves, retain_graph=True)
        total += sum((h * v).flatten(1).sum(1) for h, v in zip(products, signs, strict=True)) / DRAWS
    return total


def length(vectors: Weights) -> Tensor:
    """Euclidean length of every run's vector."""
    return torch.stack([v.square().flatten(1).sum(1) for v in vectors]).sum(0).sqrt()


def ball(weights: Weights, data: Data, *, relative: bool = False) -> Tensor:
    """Largest rise of the loss within a ball, by ascent along its surface; relative: weights in units of themselves."""
    units = [w.abs() if relative else torch.ones_like(w) for w in weights]
    radius = RELATIVE if relative else RADIUS
    start = losses(weights, *data)
    u = [torch.zeros_like(w) for w in weights]
    best = torch.zeros_like(start)
    for _ in range(ASCENT):
        there = [w + s * x for w, s, x in zip(weights, units, u, strict=True)]
        slope = [s * g for s, g in zip(units, gradients(there, *data), strict=True)]
        size = length(slope)
        u = [x + radius * g / over_runs(size, g) for x, g in zip(u, slope, strict=True)]
        size = length(u)
        u = [x * over_runs(radius / size, x) for x in u]
        there = [w + s * x for w, s, x in zip(weights, units, u, strict=True)]
        best = torch.maximum(best, losses(there, *data) - start)
    return best


def average(weights: Weights, data: Data) -> Tensor:
    """Mean rise of the loss over random directions, at the same radius."""
    generator = torch.Generator().manual_seed(0)
    start = losses(weights, *data)
    total = torch.zeros_like(start)
    for _ in range(DRAWS):
        v = [torch.randn(w.shape[1:], generator=generator, dtype=w.dtype).expand_as(w) for w in weights]
        for side in (1, -1):  # both, so that the slope cancels
            scale = side * RADIUS / length(v)
            there = [w + over_runs(scale, x) * x for w, x in zip(weights, v, strict=True)]
            total += (losses(there, *data) - start) / (2 * DRAWS)
    return total


def slope(weights: Weights, data: Data) -> Tensor:
    """Length of the gradient: SAM's rise, to first order, over its radius."""
    return length(list(gradients(weights, *data)))


MEASURES: dict[str, Callable[[Weights, Data], Tensor]] = {
    "top": top,
    "trace": trace,
    "ball": ball,
    "average": average,
    "relative ball": partial(ball, relative=True),
    "slope": slope,
}


# Do they predict?


def correlation(measure: np.ndarray, loss: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation over all runs, and the mean of those within each group."""
    inside = [spearmanr(measure[groups == g], loss[groups == g]).statistic for g in np.unique(groups)]
    return float(spearmanr(measure, loss).statistic), float(np.nanmean(inside))


def predicts(measure: Sequence[float], loss: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """Both rank correlations, each with the middle 95 of 100 bootstrap resamples of the runs of every group."""
    x, y, g = np.array(measure), np.array(loss), np.array(groups)
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(g == name) for name in np.unique(g)]
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rng.choice(place, len(place)) for place in places])
        drawn.append(correlation(x[chosen], y[chosen], g[chosen]))
    spread = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    all_runs, inside = correlation(x, y, g)
    return {
        "all": all_runs,
        "all_interval": spread[:, 0].tolist(),
        "within": inside,
        "within_interval": spread[:, 1].tolist(),
    }


def measured(runs: Sequence[tuple[str, int, Weights]]) -> dict[str, Any]:
    """One level: of every run its test loss and all measures, of the network and of its twin, and what they predict."""
    clean, _, test = splits()
    weights = [torch.stack(w) for w in zip(*(w for _, _, w in runs), strict=True)]
    count = len(runs)
    labels = torch.stack([wrong_labels(clean.labels, seed) for _, seed, _ in runs])
    data = Data(clean.inputs.expand(count, -1, -1), labels)
    held_out = Data(test.inputs.expand(count, -1, -1), test.labels.expand(count, -1))
    groups = [method for method, _, _ in runs]
    loss = losses(weights, *held_out).tolist()
    other = twins(weights, torch.Generator().manual_seed(1))
    result: dict[str, Any] = {
        "methods": groups,
        "training_loss": losses(weights, *data).tolist(),
        "test_loss": loss,
        "twins_differ_by": float((losses(other, *held_out) - losses(weights, *held_out)).abs().max()),
    }
    for name, measure in MEASURES.items():
        values, of_twins = measure(weights, data).tolist(), measure(other, data).tolist()
        result[name] = {
            "values": values,
            "twins": of_twins,
            "predicts": predicts(values, loss, groups),
            "twins_predict": predicts(of_twins, loss, groups),
        }
    return result


def main() -> None:
    """Train, measure, and store everything."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    runs = [(method, seed) for method in METHODS for seed in SEEDS]
    found = [(method, seed, kept(method, seed)) for method, seed in tqdm(runs)]
    results = {
        "settings": {
            name: {**asdict(setting), "metric": type(metric).__name__ if metric else None}
            for name, (setting, metric) in METHODS.items()
        },
        "levels": [
            {"level": level, **measured([(m, s, w[level]) for m, s, w in found if level in w])}
            for level in tqdm(LEVELS)
        ],
    }
    protocol = {"command": "python -m book.experiments.flatness", "fresh_seeds": SEEDS}
    store("flatness", protocol, rounded(results), time.perf_counter() - start)


if __name__ == "__main__":
    main()
