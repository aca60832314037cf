"""What a learned preconditioner does, block by block: how far it is from the identity, and what it makes of g."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.shards import sum_over_shards
from llqr_sam_ref.optim.preconditioner.blocks import Vector
from llqr_sam_ref.optim.preconditioner.stack import Preconditioner, Stack
from llqr_sam_ref.optim.structures import EKFAC, Diagonal, Factors, Kronecker, Scalar, SeparableEKFAC
from llqr_sam_ref.optim.structures.side import Side


@dataclass(frozen=True)
class BlockReport:
    """One block of U, and its gradient g.

    Attributes:
        name: of the parameter, or of the layer.
        distance: |U - I|, Frobenius: 0 for a U that has learned nothing.
        descent: g^T U g, the first-order decrease of the loss for a step U g; negative where U turns uphill.
        stretch: |U g|/|g|.
        cosine: of the angle between U g and g.
        clip_hits: how many inner steps of the last refit clipped each stored array; empty in closed form.
    """

    name: str
    distance: float
    descent: float
    stretch: float
    cosine: float
    clip_hits: dict[str, int]


def report_blocks(learned: Preconditioner, gradient: Vector) -> list[BlockReport]:
    """The report on all blocks of U; sums go over all shards where parameters are sharded.

    Args:
        learned: U.
        gradient: g by parameter name; zeros where it has no entry (numbers about g are 0 then).

    Returns:
        One report a block, in the order of the model's parameters. Waits for the device.
    """
    blocks: list[tuple[str, Tensor, dict[str, int]]] = []
    found = []
    for stack in learned.stacks:
        X = stack.gather(gradient).double()
        S = stack.structure.apply(stack.arrays, X.to(stack.dtype)).double()
        x, s = X.flatten(1), S.flatten(1)
        sums = squared_distance(stack), (x * s).sum(1), x.square().sum(1), s.square().sum(1)
        found.append(torch.stack(sums, 1))
        counts = {name: hits.tolist() for name, hits in stack.clip_hits.items()}
        for i, (block, head) in enumerate(zip(stack.group.blocks, stack.heads, strict=True)):
            blocks.append((block.name, head, {name: hits[i] for name, hits in counts.items()}))
    if not blocks:
        return []
    # Shards of equal layers may differ in shape, and then other layers share a stack on another rank.
    place = {parameter: index for index, parameter in enumerate(learned.names)}
    order = sorted(range(len(blocks)), key=lambda i: place[blocks[i][1]])
    blocks = [blocks[i] for i in order]
    table = torch.cat([sums.to(found[0].device) for sums in found])[order]
    rows = sum_over_shards(table, [head for _, head, _ in blocks]).tolist()
    return [_block_report(name, hits, *row) for (name, _, hits), row in zip(blocks, rows, strict=True)]


def _block_report(
    name: str, hits: dict[str, int], far: float, descent: float, g_square: float, s_square: float
) -> BlockReport:
    g, s = math.sqrt(g_square), math.sqrt(s_square)
    stretch, cosine = s / g if g else 0.0, descent / (g * s) if g * s else 0.0
    return BlockReport(name, math.sqrt(far), descent, stretch, cosine, hits)


def squared_distance(stack: Stack) -> Float[Tensor, " b"]:
    """|U - I|^2 of every block (Frobenius), from the factors, without building a matrix.

    Differences from the identity are taken before they are squared, so that a U close to I loses no digits:
    Psi (x) Phi - I = (Psi - I) (x) Phi + I (x) (Phi - I), and E D E^T - I = E (D - 1) E^T + (E E^T - I).

    Args:
        stack: the blocks.

    Returns:
        One number a block, in float64.
    """
    factors = {name: array.double() for name, array in stack.structure.factors(stack.arrays).items()}
    structure = stack.structure
    if isinstance(structure, Scalar):
        off: Tensor = (factors["u"] - 1) * math.sqrt(structure.size)
    elif isinstance(structure, Diagonal):
        off = factors["d"] - 1
    elif isinstance(structure, Kronecker):
        both = _kronecker_square(structure.psi, factors.get("Psi"), structure.phi, factors.get("Phi"))
        return both.expand(len(stack.parameters))
    elif isinstance(structure, EKFAC):
        return _ekfac_square(structure, factors).clamp_min(0)
    else:
        off = factors["U"] - torch.eye(structure.size).to(factors["U"])
    square: Tensor = off.square().flatten(1).sum(1)
    return square


def _kronecker_square(psi: Side, Psi: Tensor | None, phi: Side, Phi: Tensor | None) -> Tensor:
    """|Psi (x) Phi - I|^2."""
    far_psi, trace_psi, _ = _side(psi, Psi)
    far_phi, trace_phi, square_phi = _side(phi, Phi)
    square = far_psi * square_phi + psi.size * far_phi + 2 * trace_psi * (far_phi + trace_phi)
    return torch.as_tensor(square, dtype=torch.float64)


def _side(side: Side, F: Tensor | None) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """|F - I|^2, tr(F - I) and |F|^2 of one factor; 0, 0 and the size where there is none."""
    if F is None:
        return 0.0, 0.0, float(side.size)
    off = F - torch.eye(side.width).to(F)
    parts = off.square(), off.diagonal(dim1=-2, dim2=-1), F.square()
    far, trace, square = (part.flatten(1).sum(1) for part in parts)
    return far, trace, square


def _ekfac_square(structure: EKFAC, factors: Factors) -> Tensor:
    """|E D E^T - I|^2 = |E (D - 1) E^T|^2 + 2 <E (D - 1) E^T, E E^T - I> + |E E^T - I|^2."""
    separable = isinstance(structure, SeparableEKFAC)
    D = factors["d_Psi"][:, :, None] * factors["d_Phi"][:, None, :] if separable else factors["D"]
    sides, outer, squares, lengths, overlaps = (structure.psi, structure.phi), [], [], [], []
    for side, name in zip(sides, ("E_Psi", "E_Phi"), strict=True):
        E = factors.get(name)
        gram = None if E is None else E.mT @ E
        ones = D.new_ones(len(D), side.size, 1)
        outer.append(None if E is None else E @ E.mT)
        squares.append(None if gram is None else gram.square())
        lengths.append(ones if gram is None else gram.diagonal(dim1=-2, dim2=-1).reshape(len(D), -1, 1))
        overlaps.append(side.left(squares[-1], ones))
    change = D - 1
    spread = sides[1].right(sides[0].left(squares[0], change), squares[1])
    cross = overlaps[0] @ overlaps[1].mT - lengths[0] @ lengths[1].mT
    total = (change * (spread + 2 * cross)).flatten(1).sum(1)
    return total + _kronecker_square(sides[0], outer[0], sides[1], outer[1]).to(total)


def quadratic_gain(learned: Preconditioner, here: Linearization, *, fisher: bool) -> float:
    """The decrease of the quadratic model along U g over that along g, each at its best length.

    Args:
        learned: U.
        here: the model on a batch.
        fisher: whether the curvature is the Fisher matrix, or the Gauss-Newton matrix.

    Returns:
        (g^T U g)^2/(U g)^T C U g over (g^T g)^2/g^T C g, on the learned parameters.

    Source: the book, chapter 18.
    """
    slope = here.gradient()
    g = {p: slope[name] for p, name in learned.names.items() if name in slope}
    still = {name: torch.zeros_like(tensor) for name, tensor in slope.items()}
    product = here.fisher if fisher else here.ggn

    def decrease(s: list[Tensor]) -> float:
        curved = product({**still, **{learned.names[p]: part for p, part in zip(g, s, strict=True)}})
        rise = sum(float((part * v).sum()) for part, v in zip(s, g.values(), strict=True))
        bend = sum(float((part * curved[learned.names[p]]).sum()) for p, part in zip(g, s, strict=True))
        return rise**2 / bend

    return decrease(learned.apply(list(g.values()), list(g))) / decrease(list(g.values()))
