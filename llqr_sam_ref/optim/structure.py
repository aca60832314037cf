"""The shapes a learned preconditioner may have: U as a few small factors, applied to a matrix of gradients.

X is a weight's gradient as a matrix: output side by input side, a convolution's (out, in * height * width);
vectors stay vectors. Psi acts on the output side, Phi on the input side:

    Scalar           S = u X                    Diagonal   S = d o X               Dense   vec S = U vec X
    Kronecker        S = Psi X Phi^T            EKFAC      S = E_Psi (D o (E_Psi^T X E_Phi)) E_Phi^T
    SeparableEKFAC   E-KFAC with D = d_Psi d_Phi^T

A structure is a description without state; its stored arrays travel in a dict. Every method broadcasts over
leading axes, so that layers of equal shape are stacked and handled by one batched product. Nothing here reads
a value back to the host.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.errors import check_choice, check_count
from llqr_sam_ref.optim.side import Side, make_side

Factors = dict[str, Tensor]


class Cost(NamedTuple):
    """What a structure costs for one block.

    Args:
        apply: floating-point operations of S = U X.
        pullback: floating-point operations of the gradient in the stored arrays.
        entries: numbers stored.
    """

    apply: int
    pullback: int
    entries: int


@dataclass(frozen=True)
class Structure(ABC):
    """One family of matrices U for blocks of one shape.

    Args:
        shape: of the block: (p,), or (output side m, input side n).
        positive: store logarithms of scales and roots of matrices, u = exp(stored), Phi = stored stored^T, so
            that U is positive definite whatever the stored arrays become (as long as bases and roots stay
            nonsingular).
    """

    shape: tuple[int, ...]
    positive: bool = False

    scales: ClassVar[tuple[str, ...]] = ()  # arrays that multiply entries
    matrices: ClassVar[tuple[str, ...]] = ()  # arrays whose symmetric part should be positive

    @property
    def size(self) -> int:
        """Entries of a block."""
        return math.prod(self.shape)

    @abstractmethod
    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the stored arrays; what would be the identity of a wide side is absent."""

    @abstractmethod
    def cost(self) -> Cost:
        """Operations and memory for one block."""

    @abstractmethod
    def _apply(self, factors: Factors, X: Tensor) -> Tensor: ...

    @abstractmethod
    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors: ...

    @abstractmethod
    def _dense(self, factors: Factors) -> Tensor: ...

    def identity(
        self,
        batch: tuple[int, ...] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Factors:
        """The stored arrays of U = I.

        Args:
            batch: leading axes.
            dtype: of the arrays.
            device: of the arrays.

        Returns:
            New arrays, by name.
        """
        arrays = {}
        for name, shape in self.array_shapes().items():
            if name in self.scales:
                fill = 0.0 if self.positive else 1.0
                arrays[name] = torch.full((*batch, *shape), fill, dtype=dtype, device=device)
            else:
                eye = torch.eye(shape[-1], dtype=dtype, device=device)
                arrays[name] = eye.expand(*batch, *shape).clone()
        return arrays

    def factors(self, arrays: Factors) -> Factors:
        """What the stored arrays stand for: themselves, or exponentials and squares if ``positive``."""
        if not self.positive:
            return arrays
        found = dict(arrays)
        found.update({name: arrays[name].exp() for name in self.scales if name in arrays})
        found.update({name: arrays[name] @ arrays[name].mT for name in self.matrices if name in arrays})
        return found

    def apply(self, arrays: Factors, X: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """S = U X.

        Args:
            arrays: the stored arrays.
            X: a block, or a stack of blocks.

        Returns:
            S, shaped as X.

        Source: LLQR, arXiv 2605.04230; the book, chapter 17.
        """
        return self._apply(self.factors(arrays), X)

    def pullback(self, arrays: Factors, X: Float[Tensor, "*b m n"], Z: Float[Tensor, "*b m n"]) -> Factors:
        """The gradient of <Z, U X> in every stored array, X and Z held fixed.

        With X the gradient and Z = (G + mu I) U X - X this is the gradient of the relaxed objective.

        Args:
            arrays: the stored arrays.
            X: what U acts on.
            Z: what is pulled back.

        Returns:
            One array for each stored one.

        Source: the book, thm-relaxed-gradients.
        """
        factors = self.factors(arrays)
        found = self._pullback(factors, X, Z)
        if self.positive:
            found.update({name: found[name] * factors[name] for name in self.scales if name in found})
            found.update({
                name: (found[name] + found[name].mT) @ arrays[name] for name in self.matrices if name in found
            })
        return found

    def to_dense(self, arrays: Factors) -> Float[Tensor, "*b p p"]:
        """U as a matrix on the block's entries in row-major order."""
        return self._dense(self.factors(arrays))

    def project(self, arrays: Factors, floor: float) -> Factors:
        """Arrays with the scales at least ``floor``: the sign guard of unconstrained structures.

        Args:
            arrays: the stored arrays.
            floor: smallest scale allowed.

        Returns:
            The same arrays where nothing is to be done; all of them if ``positive``.
        """
        if self.positive:
            return arrays
        return {n: a.clamp_min(floor) if n in self.scales else a for n, a in arrays.items()}


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


STRUCTURES: dict[str, type[Structure]] = {
    "scalar": Scalar,
    "diagonal": Diagonal,
    "kronecker": Kronecker,
    "ekfac": EKFAC,
    "separable-ekfac": SeparableEKFAC,
    "dense": Dense,
}


def make_structure(
    name: str,
    shape: tuple[int, ...],
    *,
    positive: bool = False,
    max_side: int | None = None,
    wide: str = "identity",
) -> Structure:
    """The structure of a name for blocks of a shape; a vector has no two sides and gets a diagonal.

    Args:
        name: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense".
        shape: of the block: (p,) or (m, n).
        positive: see Structure.
        max_side: see TwoSided; without effect on the others.
        wide: see TwoSided.

    Returns:
        The structure.

    Raises:
        ValueError: an unknown name.
    """
    kind = STRUCTURES[check_choice("structure", name, STRUCTURES)]
    if not issubclass(kind, TwoSided):
        return kind(shape, positive)
    return Diagonal(shape, positive) if len(shape) == 1 else kind(shape, positive, max_side, wide)


def _kron(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product of the last two axes."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2, -1)
