"""Shared by tests of the relaxed objective: layers, random preconditioners, derivatives without formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.structures import STRUCTURES

LAYERS = (((4, 3), (4,)), ((2, 4), (2,)))
SIZE = 26
NAMES = tuple(STRUCTURES)


def random_like(U: Preconditioner, rng: np.random.Generator, spread: float = 0.5) -> Preconditioner:
    """U with noise on every stored array: nothing symmetric, nothing orthogonal, signs free."""
    return U.with_arrays([
        {name: array + spread * rng.standard_normal(array.shape) for name, array in block.arrays.items()}
        for block in U.blocks
    ])


def random_preconditioner(
    name: str, rng: np.random.Generator, *, per_layer: bool = False, positive: bool = False
) -> Preconditioner:
    """A random U on ``LAYERS``."""
    return random_like(identity_preconditioner(LAYERS, name, per_layer=per_layer, positive=positive), rng)


def random_symmetric(rng: np.random.Generator, size: int = SIZE) -> Float[np.ndarray, "d d"]:
    """A symmetric matrix with eigenvalues of both signs."""
    A = rng.standard_normal((size, size))
    symmetric: Float[np.ndarray, "d d"] = (A + A.T) / 2
    return symmetric


def random_spd(rng: np.random.Generator, size: int = SIZE) -> Float[np.ndarray, "d d"]:
    """A symmetric positive definite matrix, eigenvalues at least 0.1."""
    A = rng.standard_normal((size, size))
    definite: Float[np.ndarray, "d d"] = A @ A.T / size + 0.1 * np.eye(size)
    return definite


def complex_step(
    function: Callable[[Preconditioner], complex], U: Preconditioner, h: float = 1e-30
) -> list[dict[str, Array]]:
    """Derivatives of an analytic function of the stored arrays: Im f(x + i h)/h, exact to rounding."""
    gradient = []
    for index, block in enumerate(U.blocks):
        slopes: dict[str, Array] = {}
        for name, array in block.arrays.items():
            slopes[name] = np.empty_like(array)
            for entry in np.ndindex(array.shape):
                moved = array.astype(np.complex128)
                moved[entry] += 1j * h
                arrays = [other.arrays for other in U.blocks]
                arrays[index] = {**block.arrays, name: moved}
                slopes[name][entry] = function(U.with_arrays(arrays)).imag / h
        gradient.append(slopes)
    return gradient


def distance(a: list[dict[str, Array]], b: list[dict[str, Array]]) -> float:
    """Largest difference between two sets of arrays, relative to the largest entry of the second."""
    assert [list(x) for x in a] == [list(x) for x in b]
    gap = max(float(np.abs(x[n] - y[n]).max()) for x, y in zip(a, b, strict=True) for n in x)
    return gap / max(float(np.abs(y[n]).max()) for y in b for n in y)
