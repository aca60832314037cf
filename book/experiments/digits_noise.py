"""Digits with 400 of 1000 labels wrong: SGD and SAM, tuned alike.

    python -m book.experiments.digits_noise      writes book/results/digits_noise.json, in minutes on one core

Each method gets a grid of 48 settings and the same five tuning seeds; the setting with the best mean accuracy
on the validation set (whose labels are right) is then run with ten fresh seeds; so is one untuned setting.
A seed decides the initial weights, which labels are wrong, and the order of the batches; the split is fixed.
All runs of a list train at once, along a leading axis: the arithmetic is that of ``llqr_sam_ref.SAM`` around
``torch.optim.SGD``, run by run, which the chapter and tests/experiments check.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from book.experiments.store import store
from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.train.sharpness import lanczos

WIDTHS = (64, 64, 64, 10)
TRAIN, VALIDATION = 1000, 300  # the other 497 are the test set
WRONG, BATCH, STEPS, MOMENTUM = 400, 64, 800, 0.9
CHECKPOINTS = tuple(range(0, STEPS + 1, 80))
TUNING_SEEDS, FRESH_SEEDS = tuple(range(5)), tuple(range(100, 110))
LANCZOS_STEPS = 24
AT_ONCE = 36  # runs; more do not fit the cache


class Setting(NamedTuple):
    """What is tuned; rho = 0 is SGD."""

    lr: float
    wd: float
    rho: float = 0.0


GRIDS = {
    "sgd": [
        Setting(lr, wd)
        for lr, wd in itertools.product(
            (0.01, 0.02, 0.05, 0.1, 0.2, 0.4), (0.0, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
        )
    ],
    "sam": [
        Setting(*point)
        for point in itertools.product((0.05, 0.1, 0.2, 0.4), (5e-4, 2e-3, 5e-3, 1e-2), (0.1, 0.2, 0.4))
    ],
}
UNTUNED = {"sgd": Setting(0.05, 5e-4), "sam": Setting(0.05, 5e-4, 0.2)}


class Data(NamedTuple):
    """Inputs (n, 64) between 0 and 1 and labels (n,)."""

    inputs: Tensor
    labels: Tensor


def splits() -> tuple[Data, Data, Data]:
    """Training, validation and test set, all labels right."""
    inputs, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs, labels = inputs[order] / 16.0, labels[order]
    test = TRAIN + VALIDATION
    return (
        Data(inputs[:TRAIN], labels[:TRAIN]),
        Data(inputs[TRAIN:test], labels[TRAIN:test]),
        Data(inputs[test:], labels[test:]),
    )


def wrong_labels(labels: Tensor, seed: int) -> Tensor:
    """The labels with 400 of them moved to another class, all nine equally likely."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:WRONG]
    moved = labels.clone()
    moved[chosen] = (labels[chosen] + torch.randint(1, 10, (WRONG,), generator=generator)) % 10
    return moved


def batches(seed: int) -> Tensor:
    """Indices of the training examples of every step, (STEPS, BATCH); an epoch has no incomplete batch."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = TRAIN // BATCH
    epochs = [
        torch.randperm(TRAIN, generator=generator)[: per_epoch * BATCH].view(per_epoch, BATCH)
        for _ in range(-(-STEPS // per_epoch))
    ]
    return torch.cat(epochs)[:STEPS]


def initial_weights(seed: int) -> list[Tensor]:
    """What torch initializes the network with under this seed, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [p.detach().double() for p in mlp(WIDTHS).parameters()]


def learning_rate(step: int) -> float:
    """The cosine schedule, as a factor of the learning rate."""
    return (1 + math.cos(math.pi * step / STEPS)) / 2


def outputs(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Logits (R, n, 10) of R networks; weights are (R, out, in) and (R, out) in turn, inputs (R, n, 64)."""
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    for i, (matrix, bias) in enumerate(pairs):
        inputs = torch.baddbmm(bias[:, None], inputs, matrix.mT)
        inputs = inputs if i == len(pairs) - 1 else inputs.relu()
    return inputs


def losses(weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every run, (R,)."""
    return cross_entropy(outputs(weights, inputs).mT, labels, reduction="none").mean(1)


def gradients(weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The gradient of every run's loss, in the shapes of the weights."""
    leaves = [w.detach().requires_grad_() for w in weights]
    return torch.autograd.grad(losses(leaves, inputs, labels).sum(), leaves)


def over_runs(values: Tensor, like: Tensor) -> Tensor:
    """One number per run, shaped to multiply a tensor with a leading run axis."""
    return values.view(-1, *[1] * (like.ndim - 1))


def top_eigenvalue(
    weights: Sequence[Tensor], data: Data, steps: int = LANCZOS_STEPS
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of every run's Hessian of the loss on all its data, and |H v - h v|, both (R,).

    Within the second number of the first there is an eigenvalue.
    """
    leaves = [w.detach().requires_grad_() for w in weights]
    slopes = torch.autograd.grad(losses(leaves, *data).sum(), leaves, create_graph=True)
    slope = torch.cat([g.flatten(1) for g in slopes], 1)

    def multiply(v: Tensor) -> Tensor:
        parts = torch.autograd.grad((slope * v).sum(), leaves, retain_graph=True)
        return torch.cat([part.flatten(1) for part in parts], 1)

    v = torch.randn(slope.shape[1], generator=torch.Generator().manual_seed(0), dtype=slope.dtype)
    values, residuals, _ = lanczos(multiply, v.expand_as(slope), steps)
    return values, residuals


class Result(NamedTuple):
    """What R runs end with (R,), and what was measured on the way (R, checkpoints)."""

    validation: Tensor
    test: Tensor
    memorized: Tensor  # share of the wrong labels that the network gives back
    loss: Tensor
    eigenvalue: Tensor
    residual: Tensor


def train(runs: Sequence[tuple[Setting, int]], checkpoints: Sequence[int] = (), steps: int = STEPS) -> Result:
    """Train one network for each setting and seed, all at once; the schedule is that of ``STEPS`` steps."""
    clean, validation, test = splits()
    lr, wd, rho = torch.tensor([setting for setting, _ in runs], dtype=torch.float64).T
    seeds = [seed for _, seed in runs]
    labels = torch.stack([wrong_labels(clean.labels, seed) for seed in seeds])
    order = torch.stack([batches(seed) for seed in seeds])
    weights = [torch.stack(tensors) for tensors in zip(*map(initial_weights, seeds), strict=True)]
    momentum = [torch.zeros_like(w) for w in weights]
    everything = Data(clean.inputs.expand(len(runs), -1, -1), labels)
    measured: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps + 1):
        if step in checkpoints:
            measured.append((losses(weights, *everything), *top_eigenvalue(weights, everything)))
        if step == steps:
            break
        batch = clean.inputs[order[:, step]], labels.gather(1, order[:, step])
        g = gradients(weights, *batch)
        if rho.any():
            scale = rho / torch.stack([x.flatten(1).norm(dim=1) for x in g]).norm(dim=0)
            g = gradients([w + over_runs(scale, x) * x for w, x in zip(weights, g, strict=True)], *batch)
        for w, x, m in zip(weights, g, momentum, strict=True):
            m.mul_(MOMENTUM).add_(x + over_runs(wd, w) * w)
            w.sub_(over_runs(learning_rate(step) * lr, m) * m)
    guessed = outputs(weights, everything.inputs).argmax(2)
    wrong = labels != clean.labels
    memorized = ((guessed == labels) & wrong).double().sum(1) / WRONG
    path = [torch.stack(column, 1) for column in zip(*measured, strict=True)] or [
        lr.new_zeros(len(runs), 0)
    ] * 3
    return Result(accuracy(weights, validation), accuracy(weights, test), memorized, *path)


def accuracy(weights: Sequence[Tensor], data: Data) -> Tensor:
    """Share of right answers of every run, (R,)."""
    answers = outputs(weights, data.inputs.expand(len(weights[0]), -1, -1)).argmax(2)
    return (answers == data.labels).double().mean(1)


def tune(method: str) -> list[float]:
    """Mean validation accuracy over the tuning seeds, for each setting of the grid."""
    runs = [(setting, seed) for setting in GRIDS[method] for seed in TUNING_SEEDS]
    found = [train(runs[i : i + AT_ONCE]).validation for i in range(0, len(runs), AT_ONCE)]
    return [float(x) for x in torch.cat(found).view(len(GRIDS[method]), -1).mean(1)]


def main() -> None:
    """Tune, run the fresh seeds, and store everything."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    results = {}
    for method, grid in GRIDS.items():
        validation = tune(method)
        tuned = grid[max(range(len(grid)), key=validation.__getitem__)]
        results[method] = {"grid": [list(setting) for setting in grid], "grid_validation": validation}
        for name, setting in (("tuned", tuned), ("untuned", UNTUNED[method])):
            found = train([(setting, seed) for seed in FRESH_SEEDS], CHECKPOINTS)
            numbers = {key: value.tolist() for key, value in found._asdict().items()}
            results[method][name] = {"setting": setting._asdict(), **numbers}
    protocol = {
        "command": "python -m book.experiments.digits_noise",
        "tuning_seeds": TUNING_SEEDS,
        "fresh_seeds": FRESH_SEEDS,
        "checkpoints": CHECKPOINTS,
    }
    store("digits_noise", protocol, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
