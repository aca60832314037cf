"""Eigenbases of the two sides of a matrix: where they come from, and how probes and curvature are seen in them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.exact._arrays import Array

Basis = Float[np.ndarray, "side side"] | None  # None stands for the identity
Bases = tuple[Basis, Basis]  # E_Psi (output side) and E_Phi (input side)
Width = int | None  # of the diagonal blocks of a basis; None where the side keeps the identity

RIDGE = 1e-7  # of the trace
FLOOR = 1e-2  # of the mean eigenvalue


def block_width(side: int, max_side: int | None, wide: str) -> Width:
    """The width of the diagonal blocks that a side's basis has: one of the whole side up to ``max_side``.

    Args:
        side: rows.
        max_side: the widest block; None for no limit.
        wide: what a wider side gets: "identity", or the fewest equal "blocks" that fit.

    Returns:
        The width; None for a side that keeps the identity.
    """
    if max_side is None or side <= max_side:
        return side
    if wide == "identity" or max_side == 0:
        return None
    return max(width for width in range(1, max_side + 1) if side % width == 0)


def block_diagonal(matrix: Float[np.ndarray, "side side"], width: int) -> Float[np.ndarray, "side side"]:
    """The matrix without what lies outside of its diagonal blocks."""
    number = np.arange(len(matrix)) // width
    return np.where(number[:, None] == number, matrix, 0.0)


def renewed_basis(
    gram: Float[np.ndarray, "side side"], old: Float[np.ndarray, "side side"], width: int, *, iterate: bool
) -> Float[np.ndarray, "side side"]:
    """A new basis, block by block; the old one in blocks where the Gram matrix is zero.

    Args:
        gram: symmetric positive semidefinite matrix, shape (side, side).
        old: the last basis, orthogonal and of such blocks.
        width: of a block.
        iterate: by one step of orthogonal iteration from the old one, instead of eigenvectors.

    Returns:
        An orthogonal matrix of diagonal blocks.
    """
    new = old.copy()
    for start in range(0, len(gram), width):
        part = slice(start, start + width)
        block = iterated_basis(gram[part, part], old[part, part]) if iterate else eigenbasis(gram[part, part])
        if block is not None:
            new[part, part] = block
    return new


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


def iterated_basis(gram: Float[np.ndarray, "side side"], old: Float[np.ndarray, "side side"]) -> Basis:
    """One step of orthogonal iteration towards the eigenvectors of a Gram matrix; None if the matrix is zero.

        X = (gram + r I) E_old,  its columns in falling order of e_i' gram e_i,      X = E_new R,  diag R > 0,

    r a hundredth of the mean eigenvalue: below it directions are not told apart, and rounding does not choose them.
    The factor E_new is as close to E_old as orthogonality allows where E_old is close to the eigenvectors already, and
    its columns keep their places. The distance of the i leading directions from the eigenvectors' shrinks by
    (lambda_(i+1) + r)/(lambda_i + r) in every step.

    Args:
        gram: symmetric positive semidefinite matrix, shape (side, side).
        old: orthogonal matrix to start from.

    Returns:
        An orthogonal matrix.

    Source: the book, thm-orthogonal-iteration; Golub and Van Loan 2013, section 8.2.
    """
    trace = float(np.trace(gram))
    if trace <= 0:
        return None
    X = gram @ old
    order = np.argsort(-np.sum(old * X, axis=0), kind="stable")
    Q, R = np.linalg.qr((X + FLOOR * trace / len(gram) * old)[:, order])
    new = np.empty_like(old)
    new[:, order] = Q * np.where(np.diag(R) < 0, -1.0, 1.0)
    return new


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
