"""Structures that see a block as a matrix with an output side and an input side, and act on each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.errors import check_choice, check_count
from llqr_sam_ref.optim.structures.base import Cost, Factors, Structure
from llqr_sam_ref.optim.structures.side import Side, make_side


@dataclass(frozen=True)
class TwoSided(Structure):
    """What Kronecker and E-KFAC share: a matrix on either side, with a limit for wide sides.

    Args:
        shape: (m, n).
        positive: see Structure.
        max_side: the widest side that gets a full matrix; None for no limit.
        wide: what a wider side gets: "identity" (no array), or "blocks" (equal diagonal blocks up to
            ``max_side``).
    """

    max_side: int | None = None
    wide: str = "identity"

    def __post_init__(self) -> None:
        if len(self.shape) != 2:
            raise ValueError(f"shape={self.shape} has not two sides; use a diagonal structure for it.")
        check_choice("wide", self.wide, ("identity", "blocks"))
        if self.max_side is not None:
            check_count("max_side", self.max_side, low=0)

    @property
    def psi(self) -> Side:
        """The output side."""
        return make_side(self.shape[0], self.max_side, self.wide)

    @property
    def phi(self) -> Side:
        """The input side."""
        return make_side(self.shape[1], self.max_side, self.wide)

    def _side_shapes(self, psi: str, phi: str) -> dict[str, tuple[int, ...]]:
        named = ((psi, self.psi), (phi, self.phi))
        return {name: side.shape for name, side in named if side.count}

    def _multiplication(self) -> int:
        """Operations of one two-sided product."""
        return 2 * self.size * (self.psi.width + self.phi.width)


@dataclass(frozen=True)
class Kronecker(TwoSided):
    """S = Psi X Phi^T: one matrix a side, U = Psi (x) Phi on row-major entries."""

    matrices: ClassVar[tuple[str, ...]] = ("Psi", "Phi")

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """(m, m) and (n, n), or blocks of them."""
        return self._side_shapes("Psi", "Phi")

    def cost(self) -> Cost:
        """2 m n (m + n) operations; m^2 + n^2 numbers."""
        product = self._multiplication()
        return Cost(product, 2 * product, self.psi.entries + self.phi.entries)

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return self.phi.right(self.psi.left(factors.get("Psi"), X), factors.get("Phi"))

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        found = {}
        if self.psi.count:
            found["Psi"] = self.psi.outer(self.phi.right_transposed(Z, factors.get("Phi")), X)
        if self.phi.count:
            found["Phi"] = self.phi.outer(Z.mT, self.psi.left(factors.get("Psi"), X).mT)
        return found

    def _dense(self, factors: Factors) -> Tensor:
        return _kron(self.psi.dense(factors.get("Psi")), self.phi.dense(factors.get("Phi")))


@dataclass(frozen=True)
class EKFAC(TwoSided):
    """S = E_Psi (D o (E_Psi^T X E_Phi)) E_Phi^T: one scale an entry, in a basis a side.

    Bases are stored as they are, also if ``positive``; a wide side keeps the identity basis.
    """

    scales: ClassVar[tuple[str, ...]] = ("D",)

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Bases (m, m) and (n, n), scales (m, n)."""
        return {**self._side_shapes("E_Psi", "E_Phi"), "D": self.shape}

    def cost(self) -> Cost:
        """Two two-sided products: 4 m n (m + n) operations; m^2 + n^2 + m n numbers."""
        product, bases = self._multiplication(), self.psi.entries + self.phi.entries
        scales = sum(math.prod(shape) for n, shape in self.array_shapes().items() if n in self.scales)
        return Cost(2 * product + self.size, 4 * product + 4 * self.size, bases + scales)

    def rotate(self, factors: Factors, X: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """E_Psi^T X E_Phi: X in the bases."""
        return self.phi.right_transposed(
            self.psi.left_transposed(factors.get("E_Psi"), X), factors.get("E_Phi")
        )

    def unrotate(self, factors: Factors, Y: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """E_Psi Y E_Phi^T: back from the bases."""
        return self.phi.right(self.psi.left(factors.get("E_Psi"), Y), factors.get("E_Phi"))

    def _D(self, factors: Factors) -> Tensor:
        return factors["D"]

    def _pullback_D(self, factors: Factors, dD: Tensor) -> Factors:
        return {"D": dD}

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return self.unrotate(factors, self._D(factors) * self.rotate(factors, X))

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        D, psi, phi = self._D(factors), factors.get("E_Psi"), factors.get("E_Phi")
        X_left, Z_left = self.psi.left_transposed(psi, X), self.psi.left_transposed(psi, Z)
        X_hat, Z_hat = self.phi.right_transposed(X_left, phi), self.phi.right_transposed(Z_left, phi)
        X_scaled, Z_scaled = D * X_hat, D * Z_hat
        found = self._pullback_D(factors, Z_hat * X_hat)
        if self.psi.count:
            X_right, Z_right = self.phi.right_transposed(X, phi), self.phi.right_transposed(Z, phi)
            found["E_Psi"] = self.psi.outer(Z_right, X_scaled) + self.psi.outer(X_right, Z_scaled)
        if self.phi.count:
            X_up, Z_up = self.psi.left(psi, X_scaled), self.psi.left(psi, Z_scaled)
            found["E_Phi"] = self.phi.outer(Z.mT, X_up.mT) + self.phi.outer(X.mT, Z_up.mT)
        return found

    def _dense(self, factors: Factors) -> Tensor:
        sides = ((self.psi, "E_Psi"), (self.phi, "E_Phi"))
        basis = _kron(*(side.dense(factors.get(name)) for side, name in sides))
        basis = basis.to(self._D(factors))
        return (basis * self._D(factors).flatten(-2).unsqueeze(-2)) @ basis.mT


@dataclass(frozen=True)
class SeparableEKFAC(EKFAC):
    """E-KFAC with D = d_Psi d_Phi^T: one scale a direction of either side."""

    scales: ClassVar[tuple[str, ...]] = ("d_Psi", "d_Phi")

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Bases (m, m) and (n, n), scales (m,) and (n,)."""
        m, n = self.shape
        return {**self._side_shapes("E_Psi", "E_Phi"), "d_Psi": (m,), "d_Phi": (n,)}

    def _D(self, factors: Factors) -> Tensor:
        return factors["d_Psi"].unsqueeze(-1) * factors["d_Phi"].unsqueeze(-2)

    def _pullback_D(self, factors: Factors, dD: Tensor) -> Factors:
        psi, phi = factors["d_Psi"].unsqueeze(-1), factors["d_Phi"].unsqueeze(-1)
        return {"d_Psi": (dD @ phi).squeeze(-1), "d_Phi": (dD.mT @ psi).squeeze(-1)}


def _kron(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product of the last two axes."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2, -1)
