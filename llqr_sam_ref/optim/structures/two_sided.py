"""Structures that see a block as a matrix with an output side and an input side, and act on each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from llqr_sam_ref.errors import check_choice, check_count
from llqr_sam_ref.optim.structures.base import Shape, Structure
from llqr_sam_ref.optim.structures.elementwise import Diagonal
from llqr_sam_ref.optim.structures.side import Cut, Side, make_side


@dataclass(frozen=True)
class TwoSided(Structure):
    """What Kronecker and E-KFAC share: a matrix on either side, with a limit for wide sides.

    Args:
        shape: (m, n).
        positive: see Structure.
        max_side: the widest side that gets a full matrix; None for no limit.
        wide: what a wider side gets: "identity" (no array), or "blocks" (equal diagonal blocks up to
            ``max_side``).
        cut: where the whole matrix is cut, of which the block is a part; None for none.
    """

    max_side: int | None = None
    wide: str = "identity"
    cut: Cut | None = None

    joins_layers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.shape) != 2:
            raise ValueError(f"shape={self.shape} has not two sides; use a diagonal structure for it.")
        check_choice("wide", self.wide, ("identity", "blocks"))
        if self.max_side is not None:
            check_count("max_side", self.max_side, low=0)

    @classmethod
    def for_shape(
        cls,
        shape: Shape,
        *,
        positive: bool = False,
        max_side: int | None = None,
        wide: str = "identity",
        cut: Cut | None = None,
    ) -> Structure:
        """The structure of a matrix; a vector has no two sides and gets a diagonal."""
        return Diagonal(shape, positive) if len(shape) == 1 else cls(shape, positive, max_side, wide, cut)

    @cached_property
    def psi(self) -> Side:
        """The output side."""
        return self._side(0)

    @cached_property
    def phi(self) -> Side:
        """The input side."""
        return self._side(1)

    def _side(self, axis: int) -> Side:
        cut = self.cut if self.cut is not None and self.cut.axis == axis else None
        return make_side(self.shape[axis], self.max_side, self.wide, cut)

    def _side_shapes(self, psi: str, phi: str) -> dict[str, Shape]:
        named = ((psi, self.psi), (phi, self.phi))
        return {name: side.shape for name, side in named if side.count}

    def _multiplication(self) -> int:
        """Operations of one two-sided product."""
        return 2 * self.size * (self.psi.width + self.phi.width)


def kronecker_product(left: Tensor, right: Tensor) -> Tensor:
    """The Kronecker product over the last two axes."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2, -1)


def kronecker_squared_distance(psi: Side, Psi: Tensor | None, phi: Side, Phi: Tensor | None) -> Tensor:
    """|Psi (x) Phi - I|^2, by Psi (x) Phi - I = (Psi - I) (x) Phi + I (x) (Phi - I).

    Args:
        psi: the output side.
        Psi: its factor in float64; None for the identity.
        phi: the input side.
        Phi: its factor.

    Returns:
        One number per block; a single 0 where both factors are the identity.
    """
    left, right = psi.gap(Psi), phi.gap(Phi)
    square = (
        left.square * right.factor_square
        + psi.size * right.square
        + 2 * left.trace * (right.square + right.trace)
    )
    return square if isinstance(square, Tensor) else torch.tensor(square, dtype=torch.float64, device="cpu")
