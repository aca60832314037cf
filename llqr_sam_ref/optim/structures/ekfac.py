"""One scale per entry, in a basis per side: E-KFAC, and its form with separable scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.structures.base import Cost, Factors, Shape, sum_of_squares, times
from llqr_sam_ref.optim.structures.two_sided import TwoSided, kronecker_product, kronecker_squared_distance

SEPARABLE_SWEEPS = 5


@dataclass(frozen=True)
class EKFAC(TwoSided):
    """S = E_Psi (D o (E_Psi^T X E_Phi)) E_Phi^T: one scale per entry, in a basis per side.

    Bases are stored as they are, also if ``positive``; a wide side keeps the identity basis. In closed form they
    are the eigenvectors of the probes' Gram matrices and D = 1/(c + mu), c the probes' squares in them.

    Source: George et al. 2018 (arXiv 1806.03884), section 3.
    """

    scales: ClassVar[tuple[str, ...]] = ("D",)
    cuts: ClassVar[bool] = True

    def array_shapes(self) -> dict[str, Shape]:
        """Bases (m, m) and (n, n), scales (m, n)."""
        return {**self._side_shapes("E_Psi", "E_Phi"), "D": self.shape}

    def axis_of(self, name: str) -> int | None:
        """That of bases and Gram matrices."""
        return {"E_Psi": 0, "gram_Psi": 0, "E_Phi": 1, "gram_Phi": 1}.get(name)

    def cost(self) -> Cost:
        """Two two-sided products: 4 m n (m + n) operations; m^2 + n^2 + m n numbers."""
        product, bases = self._multiplication(), self.psi.entries + self.phi.entries
        scales = sum(math.prod(shape) for n, shape in self.array_shapes().items() if n in self.scales)
        return Cost(2 * product + self.size, 4 * product + 4 * self.size, bases + scales)

    def in_bases(self, arrays: Factors, X: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """E_Psi^T X E_Phi: X in the bases."""
        return self.psi.left_transposed(  # the right side first: its blocks leave columns apart in memory
            arrays.get("E_Psi"), self.phi.right_transposed(X, arrays.get("E_Phi"))
        )

    def out_of_bases(self, arrays: Factors, Y: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """E_Psi Y E_Phi^T: back from the bases."""
        return self.psi.left(arrays.get("E_Psi"), self.phi.right(Y, arrays.get("E_Phi")))

    def _D(self, factors: Factors) -> Tensor:
        return factors["D"]

    def _pullback_D(self, factors: Factors, dD: Tensor) -> Factors:
        return {"D": dD}

    def _apply(self, factors: Factors, X: Tensor) -> Tensor:
        return self.out_of_bases(factors, self._D(factors) * self.in_bases(factors, X))

    def apply_in_bases(self, arrays: Factors, Y: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """E_Psi (D o Y) E_Phi^T."""
        return self.out_of_bases(arrays, self._D(self.factors(arrays)) * Y)

    def turned_vectors(self, Y: Float[Tensor, "b m n"], turns: Factors) -> Float[Tensor, "b m n"]:
        """T_Psi Y T_Phi^T."""
        return self.phi.right(self.psi.left(turns.get("E_Psi"), Y), turns.get("E_Phi"))

    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors:
        D, psi, phi = self._D(factors), factors.get("E_Psi"), factors.get("E_Phi")
        X_left, Z_left = self.psi.left_transposed(psi, X), self.psi.left_transposed(psi, Z)
        X_hat, Z_hat = self.phi.right_transposed(X_left, phi), self.phi.right_transposed(Z_left, phi)
        X_scaled, Z_scaled = D * X_hat, D * Z_hat
        gradients = self._pullback_D(factors, Z_hat * X_hat)
        if self.psi.count:
            X_right, Z_right = self.phi.right_transposed(X, phi), self.phi.right_transposed(Z, phi)
            gradients["E_Psi"] = self.psi.outer(Z_right, X_scaled) + self.psi.outer(X_right, Z_scaled)
        if self.phi.count:
            X_up, Z_up = self.psi.left(psi, X_scaled), self.psi.left(psi, Z_scaled)
            gradients["E_Phi"] = self.phi.outer(Z.mT, X_up.mT) + self.phi.outer(X.mT, Z_up.mT)
        return gradients

    def _dense(self, factors: Factors) -> Tensor:
        D = self._D(factors)
        basis = kronecker_product(
            self.psi.dense(factors.get("E_Psi"), D), self.phi.dense(factors.get("E_Phi"), D)
        )
        return (basis * D.flatten(-2).unsqueeze(-2)) @ basis.mT

    def _squared_distance(self, factors: Factors) -> Tensor:
        # |E D E^T - I|^2 = |E (D - 1) E^T|^2 + 2 <E (D - 1) E^T, E E^T - I> + |E E^T - I|^2
        D = self._D(factors)
        sides, outer, squares, lengths, overlaps = (self.psi, self.phi), [], [], [], []
        for side, name in zip(sides, ("E_Psi", "E_Phi"), strict=True):
            E = factors.get(name)
            gram = None if E is None else E.mT @ E
            ones = D.new_ones(*D.shape[:-2], side.size, 1)
            outer.append(None if E is None else E @ E.mT)
            squares.append(None if gram is None else gram.square())
            lengths.append(ones if gram is None else gram.diagonal(dim1=-2, dim2=-1).reshape(ones.shape))
            overlaps.append(side.left(squares[-1], ones))
        change = D - 1
        spread = self.phi.right(self.psi.left(squares[0], change), squares[1])
        cross = overlaps[0] @ overlaps[1].mT - lengths[0] @ lengths[1].mT
        total = (change * (spread + 2 * cross)).flatten(-2).sum(-1)
        off = kronecker_squared_distance(self.psi, outer[0], self.phi, outer[1])
        return (total + off.to(total)).clamp_min(0)

    # The closed form.

    @property
    def curvature_shape(self) -> Shape:
        """As the block."""
        return self.shape

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k m n"], weight: float
    ) -> Float[Tensor, "b m n"]:
        """Weight sum_j V_j^{o2}, with V_j in the bases."""
        return sum_of_squares(V, weight)

    def trace(self, c: Float[Tensor, "b m n"]) -> Float[Tensor, " b"]:
        """The sum over the entries."""
        return c.flatten(1).sum(1)

    def minimizer(self, c: Float[Tensor, "b m n"], mu: Float[Tensor, ""]) -> Factors:
        """D = 1/(c + mu)."""
        return {"D": c.add_(mu).reciprocal_()}

    def bases(self) -> dict[str, str]:
        """Both bases, those of identity sides excepted."""
        grams = {"E_Psi": "gram_Psi", "E_Phi": "gram_Phi"}
        return {basis: grams[basis] for basis in self._side_shapes(*grams)}

    def gram_samples(self, V: Float[Tensor, "b k m n"], weight: float) -> Factors:
        """Weight sum_j V_j V_j^T and weight sum_j V_j^T V_j."""
        samples = {}
        if self.psi.count:
            rows = V.movedim(1, -2).flatten(2)
            samples["gram_Psi"] = times(self.psi.outer(rows, rows), weight)
        if self.phi.count:
            columns = V.movedim(-1, 1).flatten(2)
            samples["gram_Phi"] = times(self.phi.outer(columns, columns), weight)
        return samples

    def turned(self, c: Float[Tensor, "b m n"], turns: Factors) -> Float[Tensor, "b m n"]:
        """T_Psi^{o2} c (T_Phi^{o2})^T with T = E_new^T E_old."""
        return self.turned_vectors(c, {name: turn.square() for name, turn in turns.items()})


@dataclass(frozen=True)
class SeparableEKFAC(EKFAC):
    """E-KFAC with D = d_Psi d_Phi^T: one scale per direction of either side."""

    scales: ClassVar[tuple[str, ...]] = ("d_Psi", "d_Phi")
    cuts: ClassVar[bool] = False

    def array_shapes(self) -> dict[str, Shape]:
        """Bases (m, m) and (n, n), scales (m,) and (n,)."""
        m, n = self.shape
        return {**self._side_shapes("E_Psi", "E_Phi"), "d_Psi": (m,), "d_Phi": (n,)}

    def _D(self, factors: Factors) -> Tensor:
        return factors["d_Psi"].unsqueeze(-1) * factors["d_Phi"].unsqueeze(-2)

    def _pullback_D(self, factors: Factors, dD: Tensor) -> Factors:
        psi, phi = factors["d_Psi"].unsqueeze(-1), factors["d_Phi"].unsqueeze(-1)
        return {"d_Psi": (dD @ phi).squeeze(-1), "d_Phi": (dD.mT @ psi).squeeze(-1)}

    def minimizer(self, c: Float[Tensor, "b m n"], mu: Float[Tensor, ""]) -> Factors:
        """d_Psi d_Phi^T, the best of rank one."""
        d_Psi, d_Phi = separable_minimizer(c + mu)
        return {"d_Psi": d_Psi, "d_Phi": d_Phi}


def separable_minimizer(c: Float[Tensor, "*b m n"]) -> tuple[Float[Tensor, "*b m"], Float[Tensor, "*b n"]]:
    """The minimizer d_Psi d_Phi^T of E J over rank-one diagonals, by five alternating sweeps from ones.

        d_Psi_i = sum_j d_Phi_j / sum_j c_ij d_Phi_j^2,        d_Phi_j = sum_i d_Psi_i / sum_i c_ij d_Psi_i^2.

    Args:
        c: damped curvature, positive.

    Returns:
        d_Psi and d_Phi, both positive; exact after one sweep where c has rank one.

    Source: block coordinate descent on the objective of thm-random-probe-optimum.
    """
    a, b = torch.ones_like(c[..., :, 0]), torch.ones_like(c[..., 0, :])
    for _ in range(SEPARABLE_SWEEPS):
        a = b.sum(-1, keepdim=True) / (c @ b.square().unsqueeze(-1)).squeeze(-1)
        b = a.sum(-1, keepdim=True) / (c.mT @ a.square().unsqueeze(-1)).squeeze(-1)
    return a, b
