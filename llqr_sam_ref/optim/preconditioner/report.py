"""What a learned preconditioner does, block by block: how far it is from the identity, and what it makes of g."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.shards import sum_over_shards
from llqr_sam_ref.optim.preconditioner.blocks import Block
from llqr_sam_ref.optim.preconditioner.stack import Preconditioner
from llqr_sam_ref.optim.structures import Cost


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
        cost: what U costs on this rank: operations of U g and of its gradient, numbers stored.
    """

    name: str
    distance: float
    descent: float
    stretch: float
    cosine: float
    clip_hits: dict[str, int]
    cost: Cost


def report_blocks(learned: Preconditioner, gradient: Vector) -> list[BlockReport]:
    """The report on all blocks of U; sums go over all shards where parameters are sharded.

    Args:
        learned: U.
        gradient: g by parameter name; zeros where it has no entry (numbers about g are 0 then).

    Returns:
        One report per block, in the order of the model's parameters. Waits for the device.
    """
    blocks: list[tuple[Block, dict[str, int]]] = []
    sums: list[Tensor] = []
    for stack in learned.stacks:
        X = stack.gather(gradient).double()
        S = stack.structure.apply(stack.arrays, X.to(stack.dtype)).double()
        x, s = X.flatten(1), S.flatten(1)
        far = stack.structure.squared_distance_to_identity(stack.arrays).to(x.device).expand(len(x))
        sums.append(torch.stack((far, (x * s).sum(1), x.square().sum(1), s.square().sum(1)), 1))
        counts = {name: hits.tolist() for name, hits in stack.clip_hits.items()}
        for i, block in enumerate(stack.blocks):
            blocks.append((block, {name: hits[i] for name, hits in counts.items()}))
    if not blocks:
        return []
    # Shards of equal layers may differ in shape, and then other layers share a stack on another rank.
    place = {parameter: index for index, parameter in enumerate(learned.names)}
    order = sorted(range(len(blocks)), key=lambda i: place[blocks[i][0].head])
    blocks = [blocks[i] for i in order]
    table = torch.cat([part.to(sums[0].device) for part in sums])[order]
    rows = sum_over_shards(table, [block.head for block, _ in blocks]).tolist()
    return [_block_report(block, hits, *row) for (block, hits), row in zip(blocks, rows, strict=True)]


def _block_report(
    block: Block, hits: dict[str, int], far: float, descent: float, g_square: float, s_square: float
) -> BlockReport:
    g, s = math.sqrt(g_square), math.sqrt(s_square)
    stretch, cosine = s / g if g else 0.0, descent / (g * s) if g * s else 0.0
    return BlockReport(block.name, math.sqrt(far), descent, stretch, cosine, hits, block.structure.cost())


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
