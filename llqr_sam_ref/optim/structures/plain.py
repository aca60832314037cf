"""Structures that see a block as a list of entries: one number, one number an entry, or a whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llqr_sam_ref.optim.structures.base import Cost, Factors, Structure


@dataclass(frozen=True)
class Scalar(Structure):
    """S = u X: one learning rate for the block."""

    scales: ClassVar[tuple[str, ...]] = ("u",)

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """One number."""
        return {"u": (1,)}

    def cost(self) -> Cost:
        """One multiplication an entry."""
        return Cost(self.size, 2 * self.size, 1)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return factors["u"].reshape(*factors["u"].shape[:-1], *(1 for _ in self.shape)) * X

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        return {"u": (Z * X).sum(dim=tuple(range(-len(self.shape), 0))).unsqueeze(-1)}

    def _dense(self, factors: Factors) -> Tensor:
        return factors["u"].unsqueeze(-1) * torch.eye(self.size).to(factors["u"])


@dataclass(frozen=True)
class Diagonal(Structure):
    """S = d o X: one learning rate a weight."""

    scales: ClassVar[tuple[str, ...]] = ("d",)

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """As the block."""
        return {"d": self.shape}

    def cost(self) -> Cost:
        """One multiplication an entry."""
        return Cost(self.size, self.size, self.size)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return factors["d"] * X

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        return {"d": Z * X}

    def _dense(self, factors: Factors) -> Tensor:
        return factors["d"].flatten(-len(self.shape)).diag_embed()


@dataclass(frozen=True)
class Dense(Structure):
    """vec S = U vec X: any matrix on the block's entries."""

    matrices: ClassVar[tuple[str, ...]] = ("U",)

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """The square of the block's size."""
        return {"U": (self.size, self.size)}

    def cost(self) -> Cost:
        """One product of a matrix and a vector."""
        return Cost(2 * self.size**2, self.size**2, self.size**2)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        flat = X.flatten(-len(self.shape)).unsqueeze(-1)
        return (factors["U"] @ flat).reshape(X.shape)

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        rows, columns = (t.flatten(-len(self.shape)) for t in (Z, X))
        return {"U": rows.unsqueeze(-1) * columns.unsqueeze(-2)}

    def _dense(self, factors: Factors) -> Tensor:
        return factors["U"]
