"""Closed-form optima: which U is best over many probes, and what an inner loop that stops early makes of it.

Averaged over probes with second moment C = E g g',

    E J(U) = -tr(U C) + 1/2 tr(U'G U C),

and the minimizer is a curvature inverse, restricted to the structure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_spd, check_symmetric, check_vector

SEPARABLE_SWEEPS = 5


def dense_optimum(G: ArrayLike) -> Float[np.ndarray, "d d"]:
    """The dense minimizer of E J, whatever the probes' second moment C, as long as C has full rank: G^{-1}.

    Args:
        G: damped curvature, symmetric positive definite (d, d).

    Returns:
        G^{-1}.

    Raises:
        ValueError: G is not symmetric positive definite.

    Source: the book, thm-multi-probe-optimum.
    """
    G = check_spd("G", G)
    inverse = np.linalg.inv(G)
    symmetric: Float[np.ndarray, "d d"] = (inverse + inverse.T) / 2
    return symmetric


def diagonal_optimum(G: ArrayLike, C: ArrayLike | None = None) -> Float[np.ndarray, " d"]:
    """The diagonal minimizer of E J: the solution of (G o C) d = diag(C).

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        C: second moment E g g' of the probes; none given means the identity, d_i = 1/G_ii.

    Returns:
        d, in units of 1/curvature; entries may be negative when the coordinates of the probes are correlated.

    Raises:
        ValueError: G is not positive definite, C is not symmetric with a positive diagonal.

    Source: the book, thm-multi-probe-optimum, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    if C is None:
        inverse: Float[np.ndarray, " d"] = 1 / np.diag(G)
        return inverse
    C = _second_moment(C, len(G))
    solution: Float[np.ndarray, " d"] = np.linalg.solve(G * C, np.diag(C))
    return solution


def scalar_optimum(G: ArrayLike, C: ArrayLike | None = None) -> float:
    """The scalar minimizer of E J: tr(C)/tr(G C); with white probes d/tr(G).

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        C: second moment E g g' of the probes; none given means the identity.

    Returns:
        u, in units of 1/curvature.

    Raises:
        ValueError: G is not positive definite, C is not symmetric with a positive diagonal.

    Source: the book, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    C = np.eye(len(G)) if C is None else _second_moment(C, len(G))
    return float(np.trace(C) / np.sum(G * C))


def block_optimum(G: ArrayLike, sizes: Sequence[int]) -> Float[np.ndarray, "d d"]:
    """The block-diagonal minimizer of E J for white probes: the inverses of the diagonal blocks of G.

    Curvature between blocks is invisible to it.

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        sizes: numbers of weights of the blocks, adding up to d.

    Returns:
        The block-diagonal matrix, shape (d, d).

    Raises:
        ValueError: G is not positive definite, or the sizes do not add up to d.

    Source: the book, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    for size in sizes:
        check_count("sizes", size)
    if sum(sizes) != len(G):
        raise ValueError(
            f"sizes={list(sizes)} add up to {sum(sizes)}; pass block sizes that add up to {len(G)}."
        )
    optimum = np.zeros_like(G)
    start = 0
    for size in sizes:
        block = slice(start, start + size)
        optimum[block, block] = dense_optimum(G[block, block])
        start += size
    return optimum


def _second_moment(C: ArrayLike, size: int) -> Float[np.ndarray, "d d"]:
    C = check_symmetric("C", C, size)
    if np.diag(C).min() <= 0:
        raise ValueError(
            f"C has {np.diag(C).min():.6g} on its diagonal; pass probes that reach every coordinate."
        )
    return C


def early_stopping_filter(w: ArrayLike, steps: int, a: float) -> Array:
    """What T plain inner steps from the identity make of curvature w: 1/w + (1 - 1/w)(1 - a w)^T.

    Args:
        w: curvature, any shape; 0 stands for its limit 1 + a T.
        steps: T, number of inner steps.
        a: inner learning rate times the probe's squared length, eta_U |g|^2.

    Returns:
        The factor that multiplies the gradient, in the shape of w: between 1 and 1/w for 0 < a w <= 1;
        diverging with T for a w > 2.

    Raises:
        ValueError: entries that are not finite, or a negative number of steps or a.

    Source: the book, (16.4), thm-early-stopping-filter.
    """
    check_count("steps", steps, low=0)
    a = check_number("a", a, low=0.0)
    w = check_vector("w", np.ravel(w)).reshape(np.shape(w))
    left = (1 - a * w) ** steps
    safe = np.where(w == 0, 1.0, w)
    gentle = np.where(a * w < 0.5, a * w, 0.0)  # where 1 - left would lose digits
    gone = np.where(a * w < 0.5, -np.expm1(steps * np.log1p(-gentle)), 1 - left)
    learned = np.where(w == 0, a * steps, gone / safe)
    response: Array = learned + left
    return response


def separable_minimizer(
    c: Float[np.ndarray, "m n"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """The minimizer d_Psi d_Phi' of E J over rank-one diagonals, by five alternating sweeps from ones.

    E J = sum_ij [-a_i b_j + 1/2 c_ij a_i^2 b_j^2], a = d_Psi, b = d_Phi; each sweep solves for a, then b:

        a_i = sum_j b_j / sum_j c_ij b_j^2,        b_j = sum_i a_i / sum_i c_ij a_i^2.

    Args:
        c: damped curvature, positive, shape (m, n).

    Returns:
        d_Psi (m,) and d_Phi (n,), both positive; exact after one sweep where c has rank one.

    Source: block coordinate descent on the objective of thm-random-probe-optimum.
    """
    b = np.ones(c.shape[1])
    a = np.ones(c.shape[0])
    for _ in range(SEPARABLE_SWEEPS):
        a = np.sum(b) / (c @ b**2)
        b = np.sum(a) / (c.T @ a**2)
    return a, b
