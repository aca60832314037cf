"""Which sides get a basis, if LLQR may cost a share of a gradient: by a model of the cost, and by measured benefit.

The model counts products. A side of length s beside one of length o, with blocks of width w, takes in every step

    into the bases and back    4 s o w        Gram matrix, every g steps    2 s o w
    renewal, every b steps     8 s w^2 + 4 s o w        (c and the momentum turned, and an orthogonal iteration)

operations; what goes once over all entries, with a basis or without, is left out. The benefit of bases is how much
lower they make the objective that U minimizes, on gradients that they were not made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llqr_sam_ref.config import ClosedForm, LLQRConfig
from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.optim.distributed.shards import is_sharded, widen
from llqr_sam_ref.optim.preconditioner.blocks import matrix_shape
from llqr_sam_ref.optim.preconditioner.closed_form import eigenbasis
from llqr_sam_ref.optim.structures import EKFAC, Factors
from llqr_sam_ref.optim.structures.side import make_side

SMALLEST = 8  # rows of a block: narrower ones are hardly a basis


@dataclass(frozen=True)
class Choice:
    """Bases of one parameter.

    Attributes:
        name: of the parameter.
        shape: as a matrix, (m, n).
        widths: of the blocks on the output and the input side; 0 where there is no basis.
        operations: that they take per step, by the model.
        benefit: by how much they lower the objective, of which each entry brings at most 1/(2 delta).
    """

    name: str
    shape: tuple[int, int]
    widths: tuple[int, int]
    operations: float
    benefit: float


@dataclass(frozen=True)
class Plan:
    """What ``within_overhead`` chose.

    Attributes:
        config: to build LLQR with.
        overhead: the operations of the bases per step over those of a gradient, by the model.
        gradient: operations of a gradient, counted.
        choices: for every matrix, in the order of the model.
    """

    config: LLQRConfig
    overhead: float
    gradient: float
    choices: tuple[Choice, ...]


def within_overhead(
    overhead: float,
    model: nn.Module,
    closure: Callable[[], Any],
    config: LLQRConfig | None = None,
    *,
    samples: int = 16,
) -> Plan:
    """Choose the bases that are worth most, within a share of what a gradient costs.

    The closure is called ``samples`` times, each time on another batch. Eigenvectors and rates are made from the
    first half of these gradients, the objective that they minimize is taken on the second. Every matrix has a table
    of widths, their cost and benefit; steps along the tables' upper hulls are taken by benefit over cost until the
    share is used up. A matrix without gradients gets no basis. Gradients and buffers of the model are as they were;
    random numbers have been drawn.

    Args:
        overhead: the share, 0.25 for a quarter of a gradient; inf for all bases that are worth something.
        model: what is trained, its parameters whole.
        closure: clears the gradients, computes the loss of the next batch and calls ``backward``, as in ``step``.
        config: the configuration to start from, whose widths are the widest; None is the default.
        samples: gradients, at least 4 and even.

    Returns:
        The plan; ``LLQR(base, model, config=plan.config)`` follows it.

    Raises:
        ValueError: a number out of range, another structure than "ekfac" in closed form, sharded parameters, or a
            closure that leaves no gradients, some that are not finite, or hardly any that are not zero.

    Source: the book, chapter 18.
    """
    config = LLQRConfig() if config is None else config
    if not math.isinf(overhead):
        check_number("overhead", overhead, low=0.0)
    if check_count("samples", samples, low=4) % 2:
        raise ValueError(f"samples={samples} is odd; half of the gradients make the bases, half judge them.")
    if config.structure != "ekfac" or not isinstance(config.solver, ClosedForm):
        raise ValueError(
            f"structure={config.structure!r} with solver={type(config.solver).__name__} has no bases to choose; pass "
            "structure='ekfac' with solver=ClosedForm(...)."
        )
    names = [name for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    parameters = dict(model.named_parameters())
    if any(is_sharded(parameters[name]) for name in names):
        raise ValueError("the parameters are sharded; plan with a whole model, and pass plan.config.")
    with _put_back(model):
        with FlopCounterMode(display=False) as counter:
            closure()
        gradient = float(counter.get_total_flops())
        seen = [_gradients(parameters, names)]
        for _ in range(samples - 1):
            closure()
            seen.append(_gradients(parameters, names))
    V = {name: torch.stack([g[name] for g in seen]) for name in names if name in seen[0]}
    if not V or gradient <= 0:
        raise ValueError("closure leaves no gradient on any matrix of the model; it must call backward().")
    broken = [name for name, v in V.items() if not bool(v.isfinite().all())]
    if broken:
        raise ValueError(
            f"closure leaves gradients of {broken[0]!r} that are not finite; plan at other weights."
        )
    still = {name for name, v in V.items() if not all(bool(half.any()) for half in v.chunk(2))}
    entries = {name: v[0].numel() for name, v in V.items()}
    if 2 * sum(entries[name] for name in still) > sum(entries.values()):
        raise ValueError(
            "most gradients that closure leaves are zero, as behind a head that begins at zero; plan after some steps."
        )
    tables = {name: table(name, v, config) for name, v in V.items() if name not in still}
    chosen = _chosen(tables, overhead * gradient)
    rows = tuple((name, *(chosen[name].widths if name in chosen else (0, 0))) for name in V)
    return Plan(
        config.replace(sides=rows),
        sum(choice.operations for choice in chosen.values()) / gradient,
        gradient,
        tuple(chosen.values()),
    )


def operations(shape: tuple[int, int], widths: tuple[int, int], solver: ClosedForm) -> float:
    """What bases take per step, by the model on top of this file.

    Args:
        shape: (m, n).
        widths: of the blocks on either side, 0 for no basis.
        solver: how often Gram matrices are sampled and bases renewed.

    Returns:
        Operations, in floating-point multiplications and additions.
    """
    entries, total = shape[0] * shape[1], 0.0
    for side, w in zip(shape, widths, strict=True):
        renewal = 8 * side * w**2 + 4 * entries * w
        total += 4 * entries * w + 2 * entries * w / solver.gram_every + renewal / solver.basis_every
    return total


def table(name: str, V: Tensor, config: LLQRConfig) -> list[Choice]:
    """All widths of a parameter's bases, what they cost and what they are worth.

    Args:
        name: of the parameter.
        V: its gradients, (samples, m, n): the first half makes bases and rates, the second judges.
        config: the widest blocks, the damping and the clocks.

    Returns:
        The choices; the first has no basis and is worth 0.
    """
    solver = config.solver
    assert isinstance(solver, ClosedForm)
    shape = (V.shape[1], V.shape[2])
    made, judged = V.chunk(2)
    bases = [_bases(made if axis == 0 else made.mT, _widths(shape[axis], config)) for axis in (0, 1)]
    rows = []
    for widths in itertools.product(bases[0], bases[1]):
        structure = EKFAC(shape, False, widths, "blocks")
        arrays = {
            n: bases[axis][w] for axis, (n, w) in enumerate(zip(("E_Psi", "E_Phi"), widths, strict=True))
        }
        kept: Factors = {n: array for n, array in arrays.items() if array is not None}
        c, d = (structure.in_bases(kept, part).square().mean(0) for part in (made, judged))
        rate = 1 / (c / c.mean() + solver.damping)
        objective = 0.5 * rate.square() * (d / d.mean() + solver.damping) - rate
        rows.append(Choice(name, shape, widths, operations(shape, widths, solver), -float(objective.sum())))
    nothing = next(row for row in rows if row.widths == (0, 0))
    rows = [Choice(r.name, r.shape, r.widths, r.operations, r.benefit - nothing.benefit) for r in rows]
    return sorted(rows, key=lambda row: (row.operations, -row.benefit))


def _widths(size: int, config: LLQRConfig) -> list[int]:
    """Widths of blocks that a side may have, from none to the widest; every other one is half as wide, or less."""
    widest = make_side(size, config.max_side, config.wide).width
    found, limit = {0}, widest
    while limit >= min(SMALLEST, widest) and limit > 0:
        width = make_side(size, limit, "blocks").width
        found.add(width if width >= min(SMALLEST, widest) and width > 1 else 0)
        limit //= 2
    return sorted(found)


def _bases(rows: Tensor, widths: list[int]) -> dict[int, Tensor | None]:
    """Eigenvectors of the Gram matrix of (samples, size, others) in blocks of each width."""
    found: dict[int, Tensor | None] = {0: None}
    for width in widths:
        if width:
            split = rows.reshape(len(rows), -1, width, rows.shape[-1])
            parts = split.movedim(0, -2).flatten(2)  # (blocks, width, all else)
            basis = eigenbasis(
                parts @ parts.mT,
                torch.eye(width, dtype=parts.dtype, device=parts.device).expand(len(parts), -1, -1),
            )
            found[width] = basis[0] if len(basis) == 1 else basis
    return found


def _chosen(tables: Mapping[str, list[Choice]], budget: float) -> dict[str, Choice]:
    """The best choice of every table within the budget: greedy along the upper hulls."""
    chosen = {name: rows[0] for name, rows in tables.items()}
    steps = [step for rows in tables.values() for step in itertools.pairwise(_hull(rows))]
    steps.sort(key=lambda step: -_slope(*step))
    spent = 0.0
    for before, after in steps:
        price = after.operations - before.operations
        if chosen[after.name] == before and spent + price <= budget:
            chosen[after.name] = after
            spent += price
    return chosen


def _hull(rows: list[Choice]) -> list[Choice]:
    """The choices on the upper hull of benefit over cost, from the cheapest to the best."""
    hull: list[Choice] = []
    for row in rows:
        if hull and row.benefit <= hull[-1].benefit:
            continue
        while len(hull) > 1 and _slope(hull[-1], row) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(row)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (after.benefit - before.benefit) / (after.operations - before.operations)


def _gradients(parameters: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Copies of the gradients that are there, as matrices of at least float32."""
    found = {name: g.detach() for name in names if (g := parameters[name].grad) is not None}
    wide = widen(list(found.values()))
    return {
        name: g.clone().reshape(matrix_shape(tuple(g.shape))) for name, g in zip(found, wide, strict=True)
    }


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
