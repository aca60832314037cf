"""One matrix on either side: the Kronecker product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llqr_sam_ref.optim.structures.base import Cost, Factors, Shape, Structure
from llqr_sam_ref.optim.structures.ekfac import SeparableEKFAC
from llqr_sam_ref.optim.structures.side import Side
from llqr_sam_ref.optim.structures.two_sided import TwoSided, kronecker_product, kronecker_squared_distance


@dataclass(frozen=True)
class Kronecker(TwoSided):
    """S = Psi X Phi^T: one matrix per side, U = Psi (x) Phi on row-major entries."""

    matrices: ClassVar[tuple[str, ...]] = ("Psi", "Phi")

    def array_shapes(self) -> dict[str, Shape]:
        """(m, m) and (n, n), or blocks of them."""
        return self._side_shapes("Psi", "Phi")

    def cost(self) -> Cost:
        """2 m n (m + n) operations; m^2 + n^2 numbers."""
        product = self._multiplication()
        return Cost(product, 2 * product, self.psi.entries + self.phi.entries)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return self.phi.right(self.psi.left(factors.get("Psi"), X), factors.get("Phi"))

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        gradients = {}
        if self.psi.count:
            gradients["Psi"] = self.psi.outer(self.phi.right_transposed(Z, factors.get("Phi")), X)
        if self.phi.count:
            gradients["Phi"] = self.phi.outer(Z.mT, self.psi.left(factors.get("Psi"), X).mT)
        return gradients

    def _dense(self, factors: Factors) -> Tensor:
        stored = next(iter(factors.values()), None)
        return kronecker_product(
            self.psi.dense(factors.get("Psi"), stored), self.phi.dense(factors.get("Phi"), stored)
        )

    def _squared_distance(self, factors: Factors) -> Tensor:
        return kronecker_squared_distance(self.psi, factors.get("Psi"), self.phi, factors.get("Phi"))

    def product_sides(self) -> tuple[tuple[str, Side], tuple[str, Side]] | None:
        """Psi and Phi themselves, unless their roots are what is stored."""
        return None if self.positive else (("Psi", self.psi), ("Phi", self.phi))

    def closed_form(self) -> Structure:
        """The separable E-KFAC: its U multiplied out is a Kronecker product, the same matrix."""
        return SeparableEKFAC(self.shape, False, self.max_side, self.wide)
