"""Derivatives by differences, and how far a value is from the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact._arrays import Array


def numerical_gradient(f: Callable[[Array], float], w: Array, h: float = 1e-3) -> Array:
    """Five-point differences: error O(h^4)."""
    slopes = [
        (8 * (f(w + h * e) - f(w - h * e)) - (f(w + 2 * h * e) - f(w - 2 * h * e))) / (12 * h)
        for e in np.eye(w.size)
    ]
    return np.array(slopes)


def relative(value: Array, truth: Array) -> float:
    """The distance between two arrays over the size of the second."""
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))
