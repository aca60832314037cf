"""Eigenbases of the two sides of a matrix: where they come from, and how probes and curvature are seen in them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.exact._arrays import Array

Basis = Float[np.ndarray, "side side"] | None  # None stands for the identity
Bases = tuple[Basis, Basis]  # E_Psi (output side) and E_Phi (input side)

RIDGE = 1e-7


def eigenbasis(gram: Float[np.ndarray, "side side"]) -> Basis:
    """The eigenvectors of a Gram matrix, as columns, eigenvalues rising; None if the matrix is zero.

    Args:
        gram: symmetric positive semidefinite matrix, shape (side, side).

    Returns:
        An orthogonal matrix. The matrix is divided by its trace first, so that its scale does not matter, and
        gets a diagonal that rises from 1e-7 to 2e-7: without it rounding would choose the vectors where an
        eigenvalue occurs more than once, as in directions that no gradient has had yet.
    """
    trace = float(np.trace(gram))
    if trace <= 0:
        return None
    ridge = RIDGE * np.linspace(1, 2, len(gram))
    vectors: Float[np.ndarray, "side side"] = np.linalg.eigh(gram / trace + np.diag(ridge))[1]
    return vectors


def carry_diagonal(c: Float[np.ndarray, "m n"], old: Bases, new: Bases) -> Float[np.ndarray, "m n"]:
    """The diagonal c of a matrix in the old bases, as a diagonal in the new ones, off-diagonals unknown.

    c <- (E_Psi,new' E_Psi,old)^{o2} c ((E_Phi,new' E_Phi,old)^{o2})', entrywise squares: sum c is kept.

    Args:
        c: diagonal in the old bases, in the array's shape.
        old: E_Psi and E_Phi that c belongs to; None stands for the identity, on a side that keeps it.
        new: E_Psi and E_Phi to carry it to.

    Returns:
        The diagonal in the new bases.

    Source: the book, chapter 18; the diagonal of R'diag(c)R for R = E_old' E_new.
    """
    if old[0] is not None and new[0] is not None:
        c = (new[0].T @ old[0]) ** 2 @ c
    if old[1] is not None and new[1] is not None:
        c = c @ ((new[1].T @ old[1]) ** 2).T
    return c


def rotate(V: Float[np.ndarray, "k m n"], bases: Bases) -> Float[np.ndarray, "k m n"]:
    """E_Psi' V E_Phi for every probe."""
    if bases[0] is not None:
        V = bases[0].T @ V
    if bases[1] is not None:
        V = V @ bases[1]
    return V


def whole_bases(bases: Bases, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """E_Psi and E_Phi as matrices, the identity written out.

    Args:
        bases: E_Psi and E_Phi, None for the identity.
        shape: of the block, (m, n).

    Returns:
        Matrices (m, m) and (n, n).
    """
    E_Psi, E_Phi = (
        np.eye(side) if basis is None else basis for side, basis in zip(shape, bases, strict=True)
    )
    return E_Psi, E_Phi
