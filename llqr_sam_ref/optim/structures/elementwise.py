"""Structures that scale entries: one number for the block, or one number per entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.structures.base import Cost, Factors, Shape, Structure, sum_of_squares


@dataclass(frozen=True)
class Scalar(Structure):
    """S = u X: one learning rate for the block."""

    scales: ClassVar[tuple[str, ...]] = ("u",)
    guards_signs: ClassVar[bool] = True

    def array_shapes(self) -> dict[str, Shape]:
        """One number."""
        return {"u": (1,)}

    def cost(self) -> Cost:
        """One multiplication per entry."""
        return Cost(self.size, 2 * self.size, 1)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return factors["u"].reshape(*factors["u"].shape[:-1], *(1 for _ in self.shape)) * X

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        return {"u": (Z * X).sum(dim=tuple(range(-len(self.shape), 0))).unsqueeze(-1)}

    def _dense(self, factors: Factors) -> Tensor:
        return factors["u"].unsqueeze(-1) * torch.eye(
            self.size, dtype=factors["u"].dtype, device=factors["u"].device
        )

    def _squared_distance(self, factors: Factors) -> Tensor:
        return ((factors["u"] - 1) * math.sqrt(self.size)).square().sum(-1)

    @property
    def curvature_shape(self) -> Shape:
        """One number: the mean over the entries."""
        return (1,)

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k *shape"], weight: float
    ) -> Float[Tensor, "b 1"]:
        """The mean over the entries of weight sum_j V_j^{o2}."""
        squares = sum_of_squares(V, weight)
        return squares.flatten(1).mean(1, keepdim=True)

    def trace(self, c: Float[Tensor, "b 1"]) -> Float[Tensor, " b"]:
        """The mean times the number of entries."""
        return c[:, 0] * self.size

    def minimizer(self, c: Float[Tensor, "b 1"], mu: Float[Tensor, ""]) -> Factors:
        """1/(c + mu)."""
        return {"u": c.add_(mu).reciprocal_()}


@dataclass(frozen=True)
class Diagonal(Structure):
    """S = d o X: one learning rate per weight."""

    scales: ClassVar[tuple[str, ...]] = ("d",)
    cuts: ClassVar[bool] = True
    guards_signs: ClassVar[bool] = True

    def array_shapes(self) -> dict[str, Shape]:
        """As the block."""
        return {"d": self.shape}

    def cost(self) -> Cost:
        """One multiplication per entry."""
        return Cost(self.size, self.size, self.size)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return factors["d"] * X

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        return {"d": Z * X}

    def _dense(self, factors: Factors) -> Tensor:
        return factors["d"].flatten(-len(self.shape)).diag_embed()

    def _squared_distance(self, factors: Factors) -> Tensor:
        return (factors["d"] - 1).square().flatten(-len(self.shape)).sum(-1)

    @property
    def curvature_shape(self) -> Shape:
        """As the block."""
        return self.shape

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k *shape"], weight: float
    ) -> Float[Tensor, "b ..."]:
        """Weight sum_j V_j^{o2}."""
        return sum_of_squares(V, weight)

    def trace(self, c: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """The sum over the entries."""
        return c.flatten(1).sum(1)

    def minimizer(self, c: Float[Tensor, "b ..."], mu: Float[Tensor, ""]) -> Factors:
        """1/(c + mu), entry by entry."""
        return {"d": c.add_(mu).reciprocal_()}
