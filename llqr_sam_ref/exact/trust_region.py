"""The trust-region subproblem, solved exactly: the worst neighbor that SAM's perturbation approximates."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.exact._arrays import check_symmetric, check_vector


def trust_region_step(
    gradient: Float[np.ndarray, " d"], hessian: Float[np.ndarray, "d d"], rho: float
) -> Float[np.ndarray, " d"]:
    """A global maximizer of the quadratic model g^T e + e^T H e/2 over the trust region |e| <= rho.

    On the boundary (nu I - H) e = g, with a multiplier nu >= max(h_max, 0) that solves the secular equation
    |e(nu)| = rho. In the hard case, g orthogonal to the top eigenvectors, nu = h_max and what is missing to
    the boundary goes along one of them. A concave model may have its maximizer inside, where nu = 0.

    Args:
        gradient: g, shape (d,).
        hessian: H, symmetric, shape (d, d).
        rho: radius of the region, in weights.

    Returns:
        e, shape (d,); one of several maximizers in the hard case.

    Raises:
        ValueError: wrong shapes, H not symmetric, entries not finite, negative rho.

    Source: Moré and Sorensen 1983, with the signs of a maximum; the book, (5.1).
    """
    g = check_vector("gradient", gradient)
    h, V = np.linalg.eigh(check_symmetric("hessian", hessian, g.size))  # h[-1] is h_max
    rho = check_number("rho", rho, low=0.0)
    if rho == 0:
        return np.zeros_like(g)
    c = V.T @ g
    if h[-1] < 0 and np.linalg.norm(c / h) <= rho:
        inside: Float[np.ndarray, " d"] = V @ (-c / h)
        return inside
    gaps = h[-1] - h  # nu - h_j = excess + gap_j, with excess = nu - h_max
    lowest = max(-float(h[-1]), 0.0)
    highest = lowest + float(np.linalg.norm(c)) / rho

    def step(excess: float) -> Float[np.ndarray, " d"]:
        shifted = excess + gaps
        return np.asarray(np.divide(c, shifted, out=np.zeros_like(c), where=shifted > 0))

    for _ in range(200):  # |e| falls with nu: halve the interval until floats run out
        middle = (lowest + highest) / 2
        if not lowest < middle < highest:
            break
        if np.linalg.norm(step(middle)) > rho:
            lowest = middle
        else:
            highest = middle
    e = step(highest)
    missing = rho**2 - float(e @ e)
    if missing > 0:  # the hard case, or nearly
        e[-1] += math.copysign(math.sqrt(e[-1] ** 2 + missing) - abs(e[-1]), c[-1])
    maximizer: Float[np.ndarray, " d"] = V @ e
    return maximizer
