"""One side of a two-sided structure: a full matrix, equal diagonal blocks, or nothing (the identity)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Gap(NamedTuple):
    """How far one factor F is from the identity.

    Args:
        square: |F - I|^2.
        trace: tr(F - I).
        factor_square: |F|^2.
    """

    square: Float[Tensor, "*b"] | float
    trace: Float[Tensor, "*b"] | float
    factor_square: Float[Tensor, "*b"] | float


@dataclass(frozen=True)
class Side:
    """A block-diagonal matrix F: one block is stored (width, width), several (count, width, width).

    Args:
        size: of the side.
        count: diagonal blocks; 0 means F = I, with no array (None is passed for it).
    """

    size: int
    count: int

    @property
    def width(self) -> int:
        """Of a block: what one row of F costs."""
        return self.size // self.count if self.count else 0

    @property
    def entries(self) -> int:
        """Numbers stored."""
        return self.size * self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (self.width, self.width) if self.count == 1 else (self.count, self.width, self.width)

    def left(self, F: Tensor | None, X: Tensor) -> Tensor:
        """F X for X (..., size, n)."""
        if F is None:
            return X
        if self.count == 1:
            return F @ X
        return (F @ self.split(X)).flatten(-3, -2)

    def left_transposed(self, F: Tensor | None, X: Tensor) -> Tensor:
        """F^T X."""
        return self.left(None if F is None else F.mT, X)

    def right(self, X: Tensor, F: Tensor | None) -> Tensor:
        """X F^T for X (..., m, size)."""
        return X @ F.mT if F is not None and self.count == 1 else self.left(F, X.mT).mT

    def right_transposed(self, X: Tensor, F: Tensor | None) -> Tensor:
        """X F."""
        return self.right(X, None if F is None else F.mT)

    def outer(self, Y: Tensor, X: Tensor) -> Tensor:
        """Y X^T where F has entries, for Y and X (..., size, n): the gradient of <Y, F X> in F."""
        return Y @ X.mT if self.count == 1 else self.split(Y) @ self.split(X).mT

    def split(self, X: Tensor) -> Tensor:
        """(..., size, n) as (..., count, width, n)."""
        return X.reshape(*X.shape[:-2], self.count, self.width, X.shape[-1])

    def dense(self, F: Tensor | None, like: Tensor | None) -> Tensor:
        """F as a matrix (..., size, size); an identity of the type and device of ``like``, else float64 on the host."""
        if F is None:
            dtype, device = (torch.float64, "cpu") if like is None else (like.dtype, like.device)
            return torch.eye(self.size, dtype=dtype, device=device)
        if self.count == 1:
            return F
        blocks = torch.diag_embed(F.movedim(-3, -1))  # (..., width, width, count, count)
        return blocks.movedim((-4, -3, -2, -1), (-3, -1, -4, -2)).flatten(-4, -3).flatten(-2, -1)

    def gap(self, F: Tensor | None) -> Gap:
        """How far F is from the identity; differences are taken before they are squared."""
        if F is None:
            return Gap(0.0, 0.0, float(self.size))
        axes = -2 if self.count == 1 else -3
        off = F - torch.eye(self.width, dtype=F.dtype, device=F.device)
        diagonal = off.diagonal(dim1=-2, dim2=-1).flatten(axes + 1)
        return Gap(off.square().flatten(axes).sum(-1), diagonal.sum(-1), F.square().flatten(axes).sum(-1))


@dataclass(frozen=True)
class Cut:
    """Where a matrix is cut between ranks: its parts are equal, but for the last that is not empty.

    Args:
        axis: 0 where the output side is cut, 1 where the input side is.
        whole: length of that side.
        parts: into how many.
    """

    axis: int
    whole: int
    parts: int

    @property
    def unit(self) -> int:
        """The widest blocks that no cut goes through; 1 too where a part is empty."""
        part = -(-self.whole // self.parts)
        lengths = [min(part, self.whole - start) for start in range(0, self.whole, part)]
        return math.gcd(*lengths) if len(lengths) == self.parts else 1


def make_side(size: int, max_side: int | None, wide: str, cut: Cut | None = None) -> Side:
    """Full up to ``max_side``; beyond it the identity, or the fewest equal blocks that fit.

    Args:
        size: of the side, or of this rank's part of it.
        max_side: the widest side that is full; None for no limit.
        wide: "identity" or "blocks".
        cut: where this side is cut; None for whole ones.

    Returns:
        The side. One that is cut has blocks that lie on one rank each; where those would be single rows, it is the
        identity.
    """
    whole = size if cut is None else cut.whole
    limit = whole if max_side is None else max_side
    if whole > limit and (wide == "identity" or max_side == 0):
        return Side(size, 0)
    unit = size if cut is None else cut.unit
    width = next((unit // n for n in range(1, unit + 1) if unit % n == 0 and unit // n <= limit), unit)
    if cut is not None and width == 1:
        return Side(size, 0)
    return Side(size, size // width if width else 1)
