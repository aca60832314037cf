"""Balls that are not ellipses: the steepest step in a p-norm or a spectral norm, and how far it rises.

max g^T epsilon over |epsilon|_p <= rho   =   rho |g|_q,      1/p + 1/q = 1.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.exact._arrays import check_matrix, check_points, size


def pnorm_step(
    gradient: Float[np.ndarray, "*batch d"], rho: float, p: float
) -> Float[np.ndarray, "*batch d"]:
    """A maximizer of g^T epsilon over the p-norm ball of radius rho; a zero gradient gives a zero step.

    epsilon_i = rho sign(g_i) |g_i|^{q-1} / |g|_q^{q/p} with 1/p + 1/q = 1. For p = infinity rho sign(g); for
    p = 1 all of rho on the first coordinate of largest |g_i| (with ties one maximizer of many).

    Args:
        gradient: g, shape (..., d).
        rho: radius, in weights.
        p: order of the norm, 1 <= p <= infinity.

    Returns:
        epsilon, shape (..., d).

    Raises:
        ValueError: NaN or infinite gradient, negative rho, p below 1.

    Source: the book, (1.4); Foret et al. 2021, eq. 2.
    """
    g = check_points("gradient", gradient)
    rho = check_number("rho", rho, low=0.0)
    q = _conjugate(p)
    share = np.abs(g) / size(g)
    if math.isinf(q):
        share = np.eye(g.shape[-1])[np.argmax(share, axis=-1)] * (share.max(axis=-1, keepdims=True) > 0)
    else:
        total = np.sum(share**q, axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0^0 is 1 here: sign(g) removes it
            share = share ** (q - 1) / np.where(total == 0, 1.0, total) ** (1 / p)
    return np.asarray(rho * np.sign(g) * share)


def dual_norm(gradient: Float[np.ndarray, "*batch d"], p: float) -> Float[np.ndarray, "*batch"]:
    """Largest rise over the unit p-norm ball: |g|_q with 1/p + 1/q = 1.

    Args:
        gradient: g, shape (..., d).
        p: order of the norm, 1 <= p <= infinity.

    Returns:
        |g|_q, shape (...).

    Raises:
        ValueError: NaN or infinite gradient, p below 1.

    Source: the book, (1.3).
    """
    g = check_points("gradient", gradient)
    q = _conjugate(p)
    scale = size(g)
    share = np.abs(g) / scale
    total = share.max(axis=-1) if math.isinf(q) else np.sum(share**q, axis=-1) ** (1 / q)
    largest: Float[np.ndarray, "*batch"] = scale[..., 0] * total
    return largest


def spectral_step(gradient: Float[np.ndarray, "m n"], rho: float) -> Float[np.ndarray, "m n"]:
    """The maximizer of <Y, E> over the matrices E whose singular values are at most rho, for Y = sum y_k a_k b_k^T.

    E = rho sum_k a_k b_k^T over the y_k > 0; it rises by rho sum_k y_k. Where Y has less than full rank others rise
    as far, and this is the shortest of them; a zero gradient gives a zero step.

    Args:
        gradient: Y, the gradient of one layer, shape (m, n).
        rho: radius, the largest singular value of the step, in weights.

    Returns:
        E, shape (m, n).

    Raises:
        ValueError: not a matrix, NaN or infinite gradient, negative rho.

    Source: the book, (1.5); Bernstein and Newhouse 2024 (arXiv 2409.20325).
    """
    Y = check_matrix("gradient", gradient)
    rho = check_number("rho", rho, low=0.0)
    a, y, b = np.linalg.svd(Y, full_matrices=False)
    kept = y > y.max(initial=0.0) * max(Y.shape) * np.finfo(np.float64).eps
    step: Float[np.ndarray, "m n"] = rho * a[:, kept] @ b[kept]
    return step


def _conjugate(p: float) -> float:
    """The q with 1/p + 1/q = 1."""
    if p == math.inf:
        return 1.0
    p = check_number("p", p, low=1.0)
    return math.inf if p == 1 else p / (p - 1)
