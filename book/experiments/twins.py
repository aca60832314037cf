"""Two networks that compute the same: what a method asks of the one, and of the other.

A network has twins: with its hidden units in another order, with a unit's incoming weights multiplied by a positive
number and its outgoing ones divided by it (a ReLU lets it through), with the weights in front of a batch norm
multiplied by whatever one likes. For every method and every kind of twin: how far apart are the functions at the two
points that are asked about, or after a few steps, as a share of how far the method moved the function. Everything is
in float64, so "the same" means ten digits. A matter of seconds; the page computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from llqr_sam_ref import LLQR, SAM, Adaptive, Euclidean, Fisher, Monge
from llqr_sam_ref.optim.metric import Metric

INPUTS, HIDDEN, CLASSES, BATCH = 8, 16, 3, 64
WARM, STILL = 20, 1e-13  # steps in which LLQR learns its map, at a rate at which nothing moves
STEPS, RATE, RHO = 5, 0.01, 0.1
SAME = 1e-8

Batch = tuple[Tensor, Tensor]


def network(seed: int) -> nn.Sequential:
    """Three layers: a batch norm and a ReLU behind the first, a ReLU behind the second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(INPUTS, HIDDEN),
            nn.BatchNorm1d(HIDDEN, eps=1e-30),  # a larger one would notice the scale
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, CLASSES),
        ).double()


def batch(seed: int) -> Batch:
    """Inputs (64, 8) and classes (64,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCH, INPUTS, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (BATCH,), generator=generator)


def reordered(model: Any, generator: torch.Generator) -> None:
    """The hidden units of both layers in another order."""
    first, norm, _, second, _, third = model
    here, there = (torch.randperm(HIDDEN, generator=generator) for _ in range(2))
    for parameter in (first.weight, first.bias, norm.weight, norm.bias):
        parameter.copy_(parameter[here].clone())
    second.weight.copy_(second.weight[there][:, here].clone())
    second.bias.copy_(second.bias[there].clone())
    third.weight.copy_(third.weight[:, there].clone())


def _factors(generator: torch.Generator) -> Tensor:
    """Between 1/5 and 5, one per unit."""
    return 5.0 ** (2 * torch.rand(HIDDEN, generator=generator, dtype=torch.float64) - 1)


def rescaled(model: Any, generator: torch.Generator) -> None:
    """What comes into a unit of the second layer times a factor, what goes out divided by it."""
    *_, second, _, third = model
    a = _factors(generator)
    second.weight.mul_(a[:, None])
    second.bias.mul_(a)
    third.weight.div_(a)


def before_the_norm(model: Any, generator: torch.Generator) -> None:
    """What comes into a unit in front of the batch norm times a factor."""
    first = model[0]
    a = _factors(generator)
    first.weight.mul_(a[:, None])
    first.bias.mul_(a)


TWINS: dict[str, Callable[[nn.Sequential, torch.Generator], None]] = {
    "other order": reordered,
    "ReLU rescaled": rescaled,
    "scaled before a batch norm": before_the_norm,
}


def twin(model: nn.Sequential, kind: str, seed: int = 0) -> nn.Sequential:
    """A copy that computes the same with other weights."""
    other = deepcopy(model)
    with torch.no_grad():
        TWINS[kind](other, torch.Generator().manual_seed(seed))
    return other


def _backward(model: nn.Module, opt: Optimizer, data: Batch) -> None:
    opt.zero_grad()
    cross_entropy(model(data[0]), data[1]).backward()  # type: ignore[no-untyped-call]


def asked(model: nn.Sequential, data: Batch, metric: Metric | None) -> Tensor:
    """Outputs at the point that SAM asks about; without a metric SAM is over LLQR, whose map has been learned."""
    model = deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=STILL)
    opt = SAM(sgd, RHO, metric=metric) if metric else SAM(LLQR(sgd, model, cross_entropy), RHO)
    for _ in range(1 if metric else WARM):
        _backward(model, opt, data)
        with opt.perturbed():
            outputs: Tensor = model(data[0]).detach()
        opt.step()
    return outputs


def stepped(model: nn.Sequential, data: Batch, make: Callable[[nn.Module], Optimizer]) -> Tensor:
    """Outputs after a few steps."""
    model = deepcopy(model)
    opt = make(model)
    for _ in range(STEPS):
        _backward(model, opt, data)
        opt.step()
    outputs: Tensor = model(data[0]).detach()
    return outputs


def _llqr(model: nn.Module) -> Optimizer:
    return LLQR(
        torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True), model, cross_entropy
    )


METRICS: dict[str, Metric | None] = {
    "SAM": Euclidean(),
    "M-SAM": Monge(),
    "ASAM": Adaptive(eta=0.0, biases=True),
    "Fisher SAM": Fisher(),
    "LLQR+SAM": None,
}
STEPPERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=RATE),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=RATE),
    "LLQR": _llqr,
}


def changes(seed: int = 0) -> dict[str, dict[str, float]]:
    """For every method and kind of twin, how far apart the two functions are over how far the method moved the first.

    Args:
        seed: of the network, the batch and the twins.

    Returns:
        {method: {kind: share}}; below ``SAME`` the twins are treated alike.
    """
    model, data = network(seed), batch(seed)
    before: Tensor = model(data[0]).detach()

    def share(outcome: Callable[[nn.Sequential], Tensor]) -> dict[str, float]:
        here = outcome(model)
        moved = (here - before).norm()
        return {kind: float((outcome(twin(model, kind, seed)) - here).norm() / moved) for kind in TWINS}

    rows = {name: share(partial(asked, data=data, metric=metric)) for name, metric in METRICS.items()}
    rows |= {name: share(partial(stepped, data=data, make=make)) for name, make in STEPPERS.items()}
    return rows
