"""The exact worst neighbor of a quadratic model: what SAM's first-order perturbation approximates."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.exact._arrays import check_symmetric, check_vector


def worst_step(
    gradient: Float[np.ndarray, " d"], hessian: Float[np.ndarray, "d d"], rho: float
) -> Float[np.ndarray, " d"]:
    """A maximizer of the quadratic model g^T e + e^T H e/2 over the ball |e| <= rho: the worst neighbor.

    On the sphere (nu I - H) e = g with nu >= max(h_1, 0), and nu solves the secular equation |e(nu)| = rho.

    Args:
        gradient: g, shape (d,).
        hessian: H, symmetric, shape (d, d).
        rho: radius, in weights.

    Returns:
        e, shape (d,); with several maximizers (g orthogonal to the top eigenvector) one of them.

    Raises:
        ValueError: wrong shapes, H not symmetric, entries not finite, negative rho.

    Source: the book, (5.1).
    """
    g = check_vector("gradient", gradient)
    h, V = np.linalg.eigh(check_symmetric("hessian", hessian, g.size))
    rho = check_number("rho", rho, low=0.0)
    if rho == 0:
        return np.zeros_like(g)
    c = V.T @ g
    if h[-1] < 0 and np.linalg.norm(c / h) <= rho:
        inside: Float[np.ndarray, " d"] = V @ (-c / h)
        return inside
    gaps = h[-1] - h  # nu - h_j = excess + gap_j, with excess = nu - h_1
    lowest = max(-float(h[-1]), 0.0)
    highest = lowest + float(np.linalg.norm(c)) / rho

    def neighbor(excess: float) -> Float[np.ndarray, " d"]:
        spread = excess + gaps
        return np.asarray(np.divide(c, spread, out=np.zeros_like(c), where=spread > 0))

    for _ in range(200):  # |e| falls with nu: halve the interval until floats run out
        middle = (lowest + highest) / 2
        if not lowest < middle < highest:
            break
        if np.linalg.norm(neighbor(middle)) > rho:
            lowest = middle
        else:
            highest = middle
    e = neighbor(highest)
    # If g has (nearly) no part along the top eigenvector, what is missing to the sphere goes there.
    missing = rho**2 - float(e @ e)
    if missing > 0:
        e[-1] += math.copysign(math.sqrt(e[-1] ** 2 + missing) - abs(e[-1]), c[-1])
    worst: Float[np.ndarray, " d"] = V @ e
    return worst
