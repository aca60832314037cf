"""How wide bases may be, if they are to cost a share of a gradient, by a model of what they cost.

The model counts products. A side of length s beside one of length o, with blocks of width w, takes in every step

    into the bases and back    4 s o w        Gram matrix, every g steps    2 s o w
    renewal, every b steps     8 s w^2 + 4 s o w        (c and the momentum turned, and an orthogonal iteration)

operations; what goes once over all entries, with a basis or without, is left out. One limit holds for all sides: it
narrows the wide ones first, and leaves the narrow ones whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llqr_sam_ref.config import ClosedForm, LLQRConfig
from llqr_sam_ref.errors import check_number
from llqr_sam_ref.optim.preconditioner.blocks import matrix_shape
from llqr_sam_ref.optim.structures import EKFAC

SMALLEST = 8  # rows of a block: narrower ones are hardly a basis


@dataclass(frozen=True)
class Plan:
    """What ``within_overhead`` chose.

    Attributes:
        config: to build LLQR with.
        overhead: the operations of the bases per step over those of a gradient, by the model.
        gradient: operations of a gradient, counted.
    """

    config: LLQRConfig
    overhead: float
    gradient: float


def within_overhead(
    overhead: float, model: nn.Module, closure: Callable[[], Any], config: LLQRConfig | None = None
) -> Plan:
    """The widest limit on bases with which they cost at most a share of what a gradient costs.

    The closure is called once, and its operations are counted. The limit is the configuration's own, or half of it, a
    quarter, down to blocks of 8 rows; where those cost too much, no side gets a basis. Gradients and buffers of the
    model are as they were.

    Args:
        overhead: the share, 0.25 for a quarter of a gradient.
        model: what is trained.
        closure: clears the gradients, computes the loss of a training batch and calls ``backward``, as in ``step``.
        config: the configuration to start from; None is the default.

    Returns:
        The plan; ``LLQR(base, model, config=plan.config)`` follows it.

    Raises:
        ValueError: a number out of range, another structure than "ekfac" in closed form, or a closure that leaves no
            gradients.

    Source: the book, chapter 18.
    """
    config = LLQRConfig() if config is None else config
    check_number("overhead", overhead, low=0.0)
    if config.structure != "ekfac" or not isinstance(config.solver, ClosedForm):
        raise ValueError(
            f"structure={config.structure!r} with solver={type(config.solver).__name__} has no bases to choose; pass "
            "structure='ekfac' with solver=ClosedForm(...)."
        )
    with _put_back(model):
        for parameter in model.parameters():
            parameter.grad = None
        with FlopCounterMode(display=False) as counter:
            closure()
        there = any(parameter.grad is not None for parameter in model.parameters())
    gradient = float(counter.get_total_flops())
    if not there or gradient <= 0:
        raise ValueError(
            "closure leaves no gradient on the model; it must compute a loss and call backward()."
        )
    for limit in _limits(model, config):
        plan = Plan(config.replace(max_side=limit), cost(model, config, limit) / gradient, gradient)
        if plan.overhead <= overhead:
            break
    return plan


def cost(model: nn.Module, config: LLQRConfig, limit: int | None) -> float:
    """What the bases of a model take per step, in operations, if all sides have one limit.

    Args:
        model: with its weights; those that are frozen have no bases.
        config: how often Gram matrices are sampled and bases renewed, and what a wide side gets.
        limit: ``max_side``.

    Returns:
        Operations, by the model on top of this file.
    """
    assert isinstance(config.solver, ClosedForm)
    shapes = [matrix_shape(tuple(p.shape)) for p in model.parameters() if p.requires_grad and p.ndim > 1]
    structures = [EKFAC(shape, False, limit, config.wide) for shape in shapes]
    return sum(operations(s.shape, (s.psi.width, s.phi.width), config.solver) for s in structures)


def operations(shape: tuple[int, ...], widths: tuple[int, int], solver: ClosedForm) -> float:
    """What the bases of one matrix take per step, by the model on top of this file.

    Args:
        shape: (m, n).
        widths: of the blocks on either side, 0 for no basis.
        solver: how often Gram matrices are sampled and bases renewed.

    Returns:
        Operations, multiplications and additions.
    """
    entries, total = shape[0] * shape[1], 0.0
    for side, w in zip(shape, widths, strict=True):
        renewal = 8 * side * w**2 + 4 * entries * w
        total += 4 * entries * w + 2 * entries * w / solver.gram_every + renewal / solver.basis_every
    return total


def _limits(model: nn.Module, config: LLQRConfig) -> Iterator[int | None]:
    """The configuration's own limit, then powers of two below it, then 0."""
    yield config.max_side
    widest = max((max(matrix_shape(tuple(p.shape))) for p in model.parameters() if p.ndim > 1), default=0)
    below = widest if config.max_side is None else min(widest, config.max_side)
    limit = 1 << max(0, (below - 1).bit_length() - 1)
    while limit >= SMALLEST:
        yield limit
        limit //= 2
    yield 0


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards gradients and buffers are what they were."""
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, gradient, values in gradients:
                p.grad = gradient
                if gradient is not None and values is not None:
                    gradient.copy_(values)
            for buffer, before in buffers:
                buffer.copy_(before)
