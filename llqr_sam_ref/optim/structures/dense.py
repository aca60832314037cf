"""Any matrix on the entries of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.structures.base import Cost, Factors, Shape, Structure


@dataclass(frozen=True)
class Dense(Structure):
    """vec S = U vec X: any matrix on the block's entries."""

    matrices: ClassVar[tuple[str, ...]] = ("U",)

    def array_shapes(self) -> dict[str, Shape]:
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

    def _squared_distance(self, factors: Factors) -> Tensor:
        U = factors["U"]
        eye = torch.eye(self.size, dtype=U.dtype, device=U.device)
        return (U - eye).square().flatten(-2).sum(-1)

    @property
    def curvature_shape(self) -> Shape:
        """The whole matrix."""
        return (self.size, self.size)

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k *shape"], weight: float
    ) -> Float[Tensor, "b p p"]:
        """Weight sum_j vec V_j vec V_j^T."""
        flat = V.flatten(2)
        return flat.mT @ flat * weight

    def trace(self, c: Float[Tensor, "b p p"]) -> Float[Tensor, " b"]:
        """The sum of the diagonal."""
        return c.diagonal(dim1=-2, dim2=-1).sum(-1)

    def minimizer(self, c: Float[Tensor, "b p p"], mu: Float[Tensor, ""]) -> Factors:
        """U = (c + mu I)^{-1}."""
        inverse = torch.linalg.inv(c + mu * torch.eye(c.shape[-1], dtype=c.dtype, device=c.device))
        return {"U": (inverse + inverse.mT) / 2}
