"""What shape a preconditioner may have: six structures, each whole, one after the other (hence the length).

A block is what one structure acts on: one array of weights, or all arrays of a layer joined end to end.
Kernels are matrices X (output side, input side), as torch stores them; vectors stay vectors. With Phi on the
input side and Psi on the output side:

    scalar            S = u X                                      u one number
    diagonal          S = d o X                                    d shaped like the block
    kronecker         S = Psi X Phi'                               U = Psi (x) Phi in row-major order
    ekfac             S = E_Psi (D o (E_Psi' X E_Phi)) E_Phi'      D one number per entry
    separable-ekfac   the same with D = d_Psi d_Phi'               one number per row, one per column
    dense             S = U X                                      the block as one vector

A vector has no two sides: under kronecker, ekfac and separable-ekfac it gets a diagonal.
A structure holds nothing: factors are passed in. ``preconditioner`` keeps them and joins blocks to a whole U.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.bases import Bases, rotate, whole_bases
from llqr_sam_ref.exact.optima import separable_minimizer

Arrays = Mapping[str, Array]
Shape = tuple[int, ...]
Layers = Sequence[Sequence[Shape]]


class Structure:
    """One family of matrices U; the factors are passed in, so that a structure itself holds nothing.

    ``matrices`` names the factors that a positive block stores as roots, ``scales`` those it stores as logs.
    """

    name: ClassVar[str]
    matrices: ClassVar[tuple[str, ...]] = ()
    scales: ClassVar[tuple[str, ...]] = ()
    two_sided: ClassVar[bool] = False
    """Whether it sees a block as a matrix, with a basis or factor on either side."""
    guards_signs: ClassVar[bool] = False
    """Whether the published method keeps its unconstrained scales from turning negative."""

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors of U = I for a block of this shape.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = U X, in the shape of the block.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradient of <Z, U X> in each factor, Z and X held fixed.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """U as a matrix on the block's entries in row-major order.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def stored_numbers(self, shape: Shape) -> int:
        """How many numbers are kept for a block of this shape, counted without building them.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    # What the closed form remembers of the curvature, and the U that is best for it.

    def curvature_shape(self, shape: Shape) -> Shape:
        """The shape of the remembered curvature c: one number per entry unless the structure sees more or less."""
        return shape

    def curvature_sample(self, V: Float[np.ndarray, "k ..."], bases: Bases) -> Array:
        """The sum over k probes V_j of what one says about c: the entrywise squares of V_j, in the bases."""
        squares: Array = np.sum(V**2, axis=0)
        return squares

    def trace(self, c: Array, shape: Shape) -> float:
        """The trace of the curvature on the block."""
        return float(np.sum(c))

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The factors of the U that minimizes E J over white probes at curvature c and damping mu.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError


class Scalar(Structure):
    """S = u X: one learning rate for the block. Source: LLQR, arXiv 2605.04230 (scalar structure)."""

    name = "scalar"
    scales = ("u",)
    guards_signs = True

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors u = 1."""
        return {"u": np.ones(1)}

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = u X."""
        product: Array = factors["u"] * X
        return product

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradient du = <Z, X>."""
        return {"u": np.sum(Z * X).reshape(1)}

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """The matrix u I."""
        return factors["u"] * np.eye(entries(shape))

    def stored_numbers(self, shape: Shape) -> int:
        """One."""
        return 1

    def curvature_shape(self, shape: Shape) -> Shape:
        """The mean curvature: one number."""
        return (1,)

    def curvature_sample(self, V: Float[np.ndarray, "k ..."], bases: Bases) -> Array:
        """The mean square of an entry, summed over the probes."""
        mean: Array = np.mean(np.sum(V**2, axis=0)).reshape(1)
        return mean

    def trace(self, c: Array, shape: Shape) -> float:
        """The mean curvature times the number of entries."""
        return float(c[0]) * entries(shape)

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The number u = 1/(c + mu)."""
        return {"u": 1 / (c + mu)}


class Diagonal(Structure):
    """S = d o X: one learning rate per weight. Source: LLQR, arXiv 2605.04230 (diagonal structure)."""

    name = "diagonal"
    scales = ("d",)
    guards_signs = True

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors d = 1."""
        return {"d": np.ones(shape)}

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = d o X."""
        product: Array = factors["d"] * X
        return product

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradient dd = Z o X."""
        return {"d": Z * X}

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """The matrix diag(d)."""
        return np.diag(factors["d"].ravel())

    def stored_numbers(self, shape: Shape) -> int:
        """One per entry."""
        return entries(shape)

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """One number per entry, d = 1/(c + mu)."""
        return {"d": 1 / (c + mu)}


class Dense(Structure):
    """S = U X with the block as one vector. Source: LLQR, arXiv 2605.04230 (dense structure)."""

    name = "dense"
    matrices = ("U",)

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors U = I."""
        return {"U": np.eye(entries(shape))}

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = U X."""
        product: Array = (factors["U"] @ X.ravel()).reshape(X.shape)
        return product

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradient dU = vec(Z) vec(X)'."""
        return {"U": np.outer(Z.ravel(), X.ravel())}

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """The matrix U itself."""
        return np.array(factors["U"])

    def stored_numbers(self, shape: Shape) -> int:
        """The square of the number of entries."""
        return entries(shape) ** 2

    def curvature_shape(self, shape: Shape) -> Shape:
        """The whole matrix F of the block."""
        return (entries(shape), entries(shape))

    def curvature_sample(self, V: Float[np.ndarray, "k ..."], bases: Bases) -> Array:
        """The sum over the probes of vec(V) vec(V)'."""
        flat = V.reshape(len(V), -1)
        outer: Array = flat.T @ flat
        return outer

    def trace(self, c: Array, shape: Shape) -> float:
        """The trace of F."""
        return float(np.trace(c))

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The matrix U = (F + mu I)^{-1}."""
        inverse = np.linalg.inv(c + mu * np.eye(len(c)))
        return {"U": (inverse + inverse.T) / 2}


class TwoSided(Structure):
    """What Kronecker and E-KFAC share: a matrix on either side, and curvature in eigenbases of the probes' Grams."""

    two_sided = True

    def curvature_sample(self, V: Float[np.ndarray, "k ..."], bases: Bases) -> Array:
        """The sum over the probes of (E_Psi' V E_Phi)^{o2}."""
        return super().curvature_sample(rotate(V, bases), bases)


class Kronecker(TwoSided):
    """S = Psi X Phi': one matrix per side. Source: LLQR, arXiv 2605.04230 (K-FAC structure)."""

    name = "kronecker"
    matrices = ("Phi", "Psi")

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors Phi = I, Psi = I."""
        return {"Phi": np.eye(shape[1]), "Psi": np.eye(shape[0])}

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = Psi X Phi'."""
        product: Array = factors["Psi"] @ X @ factors["Phi"].T
        return product

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradients dPsi = Z Phi X' and dPhi = Z' Psi X."""
        return {"Phi": Z.T @ factors["Psi"] @ X, "Psi": Z @ factors["Phi"] @ X.T}

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """The matrix Psi (x) Phi."""
        return np.kron(factors["Psi"], factors["Phi"])

    def stored_numbers(self, shape: Shape) -> int:
        """The squares of the sides."""
        return sum(side**2 for side in shape)

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The separable minimizer multiplied out, Phi = E_Phi diag(d_Phi) E_Phi' and likewise Psi."""
        d_Psi, d_Phi = separable_minimizer(c + mu)
        E_Psi, E_Phi = whole_bases(bases, c.shape)
        return {"Phi": (E_Phi * d_Phi) @ E_Phi.T, "Psi": (E_Psi * d_Psi) @ E_Psi.T}


class EKFAC(TwoSided):
    """S = E_Psi (D o (E_Psi' X E_Phi)) E_Phi': scale each entry in a basis of its own.

    Source: LLQR, arXiv 2605.04230 (E-KFAC structure); George et al. 2018 (arXiv 1806.03884).
    """

    name = "ekfac"
    scales: ClassVar[tuple[str, ...]] = ("D",)

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors E_Phi = I, E_Psi = I, D = 1."""
        return {"E_Phi": np.eye(shape[1]), "E_Psi": np.eye(shape[0]), "D": np.ones(shape)}

    def apply(self, factors: Arrays, X: Array) -> Array:
        """S = E_Psi (D o (E_Psi' X E_Phi)) E_Phi'."""
        E_Phi, E_Psi = factors["E_Phi"], factors["E_Psi"]
        product: Array = E_Psi @ (self._D(factors) * (E_Psi.T @ X @ E_Phi)) @ E_Phi.T
        return product

    def pullback(self, factors: Arrays, X: Array, Z: Array) -> dict[str, Array]:
        """The gradients in E_Phi, E_Psi and D; X^ = E_Psi' X E_Phi and Z^ = E_Psi' Z E_Phi.

        dD = Z^ o X^;   dE_Psi = Z E_Phi (D o X^)' + X E_Phi (D o Z^)';
        dE_Phi = Z' E_Psi (D o X^) + X' E_Psi (D o Z^).

        Args:
            factors: E_Phi, E_Psi and what makes D.
            X: the block's part of g, shape (m, n).
            Z: the block's part of z, shape (m, n).

        Returns:
            One gradient per factor.
        """
        E_Phi, E_Psi, D = factors["E_Phi"], factors["E_Psi"], self._D(factors)
        X_hat, Z_hat = E_Psi.T @ X @ E_Phi, E_Psi.T @ Z @ E_Phi
        return {
            "E_Phi": Z.T @ E_Psi @ (D * X_hat) + X.T @ E_Psi @ (D * Z_hat),
            "E_Psi": Z @ E_Phi @ (D * X_hat).T + X @ E_Phi @ (D * Z_hat).T,
            **self._pullback_D(factors, Z_hat * X_hat),
        }

    def to_dense(self, factors: Arrays, shape: Shape) -> Float[np.ndarray, "p p"]:
        """The matrix (E_Psi (x) E_Phi) diag(D) (E_Psi (x) E_Phi)'."""
        basis = np.kron(factors["E_Psi"], factors["E_Phi"])
        dense: Float[np.ndarray, "p p"] = (basis * self._D(factors).ravel()) @ basis.T
        return dense

    def stored_numbers(self, shape: Shape) -> int:
        """The squares of the sides, and one per entry."""
        return sum(side**2 for side in shape) + entries(shape)

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The scales D = 1/(c + mu), in the bases."""
        E_Psi, E_Phi = whole_bases(bases, c.shape)
        return {"E_Phi": E_Phi, "E_Psi": E_Psi, "D": 1 / (c + mu)}

    def _D(self, factors: Arrays) -> Float[np.ndarray, "m n"]:
        return factors["D"]

    def _pullback_D(self, factors: Arrays, dD: Float[np.ndarray, "m n"]) -> dict[str, Array]:
        return {"D": dD}


class SeparableEKFAC(EKFAC):
    """E-KFAC with D = d_Psi d_Phi': one scale per input direction times one per output direction.

    With orthogonal bases this is a Kronecker product of symmetric matrices, E_Phi diag(d_Phi) E_Phi' and
    E_Psi diag(d_Psi) E_Psi', kept in factored form.
    Source: LLQR, arXiv 2605.04230 (E-KFAC structure), with the diagonal restricted to rank one.
    """

    name = "separable-ekfac"
    scales = ("d_Phi", "d_Psi")

    def identity(self, shape: Shape) -> dict[str, Array]:
        """The factors E_Phi = I, E_Psi = I, d_Phi = 1, d_Psi = 1."""
        rows, columns = shape
        return {
            "E_Phi": np.eye(columns),
            "E_Psi": np.eye(rows),
            "d_Phi": np.ones(columns),
            "d_Psi": np.ones(rows),
        }

    def stored_numbers(self, shape: Shape) -> int:
        """The squares of the sides, and the sides."""
        return sum(side**2 for side in shape) + sum(shape)

    def minimizer(self, c: Array, mu: float, bases: Bases) -> dict[str, Array]:
        """The scales d_Psi d_Phi' of ``separable_minimizer``, in the bases."""
        d_Psi, d_Phi = separable_minimizer(c + mu)
        E_Psi, E_Phi = whole_bases(bases, c.shape)
        return {"E_Phi": E_Phi, "E_Psi": E_Psi, "d_Phi": d_Phi, "d_Psi": d_Psi}

    def _D(self, factors: Arrays) -> Float[np.ndarray, "m n"]:
        return np.outer(factors["d_Psi"], factors["d_Phi"])

    def _pullback_D(self, factors: Arrays, dD: Float[np.ndarray, "m n"]) -> dict[str, Array]:
        return {"d_Phi": dD.T @ factors["d_Psi"], "d_Psi": dD @ factors["d_Phi"]}


STRUCTURES: dict[str, Structure] = {
    structure.name: structure
    for structure in (Scalar(), Diagonal(), Kronecker(), EKFAC(), SeparableEKFAC(), Dense())
}


def entries(shape: Shape) -> int:
    """The number of entries of an array of this shape."""
    return int(np.prod(shape, dtype=np.int64))


def structure_for(name: str, shape: Shape) -> Structure:
    """The structure of this name for a block of this shape: a vector under a two-sided one gets a diagonal.

    Args:
        name: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense".
        shape: shape of the block, (p,) or (m, n).

    Returns:
        The structure.

    Raises:
        ValueError: an unknown name, or a block that is neither a vector nor a matrix.
    """
    check_choice("structure", name, STRUCTURES)
    if len(shape) not in {1, 2}:
        raise ValueError(
            f"shape={shape} is neither a vector nor a matrix; reshape it to (output side, input side)."
        )
    return STRUCTURES["diagonal"] if STRUCTURES[name].two_sided and len(shape) == 1 else STRUCTURES[name]


def stored_numbers(name: str, shape: Shape) -> int:
    """How many numbers a structure keeps for a block of this shape, counted without building them.

    Args:
        name: name of the structure.
        shape: shape of the block, (p,) or (m, n).

    Returns:
        1; m n; m^2 + n^2; m^2 + n^2 + m n; m^2 + n^2 + m + n; or (m n)^2.

    Source: the book, chapter 17, beat "Counting".
    """
    return structure_for(name, shape).stored_numbers(shape)
