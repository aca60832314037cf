"""Arrays of the book: one type, what bad ones get (an error that names the argument and the remedy), safe lengths."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Array = Float[np.ndarray, "..."]


def _as_real(argument: str, value: ArrayLike) -> Float[np.ndarray, " ..."]:
    """``value`` as a float64 array; complex numbers, strings and ragged lists are refused."""
    try:
        given = np.asarray(value)
        if np.iscomplexobj(given):
            raise TypeError
        array = given.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument}={value!r} is not an array of real numbers; pass real numbers."
        ) from None
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        index = tuple(int(i) for i in bad[0])
        raise ValueError(f"{argument} holds {array[index]} at index {index}; pass finite numbers only.")
    return array


def check_points(
    argument: str, value: ArrayLike, dimension: int | None = None
) -> Float[np.ndarray, "*batch d"]:
    """Return ``value`` as float64 points of shape (..., d), with d = ``dimension`` where that is given.

    Raises:
        ValueError: wrong shape, not real, NaN or infinite; the message names the argument and the remedy.
    """
    array = _as_real(argument, value)
    check_last_axis(argument, array, dimension)
    return array


def check_last_axis(argument: str, array: Array, dimension: int | None = None) -> None:
    """See that an array has shape (..., d), with d = ``dimension`` where that is given.

    Raises:
        ValueError: it has not.
    """
    if array.ndim < 1 or array.shape[-1] < 1 or (dimension is not None and array.shape[-1] != dimension):
        wanted = f"(..., {'d' if dimension is None else dimension})"
        raise ValueError(f"{argument} has shape {array.shape}; pass an array of shape {wanted}.")


def check_vector(argument: str, value: ArrayLike, size: int | None = None) -> Float[np.ndarray, " d"]:
    """Return ``value`` as a float64 vector of shape (d,), with d = ``size`` where that is given.

    Raises:
        ValueError: wrong shape, not real, NaN or infinite; the message names the argument and the remedy.
    """
    array = _as_real(argument, value)
    if array.ndim != 1 or array.size < 1 or (size is not None and array.size != size):
        wanted = f"({'d' if size is None else size},)"
        raise ValueError(f"{argument} has shape {array.shape}; pass a vector of shape {wanted}.")
    return array


def check_matrix(
    argument: str, value: ArrayLike, rows: int | None = None, columns: int | None = None
) -> Float[np.ndarray, " ..."]:
    """Return ``value`` as a float64 matrix, with the number of rows and columns where these are given.

    Raises:
        ValueError: wrong shape, not real, NaN or infinite; the message names the argument and the remedy.
    """
    array = _as_real(argument, value)
    wrong = array.ndim != 2 or array.size < 1
    if wrong or rows not in {None, array.shape[0]} or columns not in {None, array.shape[1]}:
        wanted = f"({'m' if rows is None else rows}, {'n' if columns is None else columns})"
        raise ValueError(f"{argument} has shape {array.shape}; pass a matrix of shape {wanted}.")
    return array


def check_symmetric(argument: str, value: ArrayLike, size: int | None = None) -> Float[np.ndarray, " ..."]:
    """Return ``value`` as a symmetric float64 matrix; asymmetry at rounding level is averaged away.

    Raises:
        ValueError: not square, not symmetric, or not finite; the message names the argument and the remedy.
    """
    array = check_matrix(argument, value, size, size)
    if array.shape[0] != array.shape[1]:
        raise ValueError(f"{argument} has shape {array.shape}; pass a square matrix.")
    gap = float(np.abs(array - array.T).max())
    if gap > 1e-8 * float(np.abs(array).max()):
        raise ValueError(
            f"{argument} is not symmetric: it differs from its transpose by {gap:.3g}; "
            f"pass ({argument} + {argument}.T) / 2."
        )
    symmetric: Float[np.ndarray, " ..."] = (array + array.T) / 2
    return symmetric


def check_spd(argument: str, value: ArrayLike, size: int | None = None) -> Float[np.ndarray, " ..."]:
    """Return ``value`` as a symmetric positive definite float64 matrix.

    Raises:
        ValueError: not symmetric, or its smallest eigenvalue (named in the message) is not positive.
    """
    array = check_symmetric(argument, value, size)
    eigenvalues = np.linalg.eigvalsh(array)
    smallest, largest = float(eigenvalues[0]), float(np.abs(eigenvalues).max())
    if smallest <= largest * array.shape[0] * np.finfo(np.float64).eps:
        raise ValueError(
            f"{argument} is not positive definite: its smallest eigenvalue is {smallest:.6g}; "
            f"add a damping larger than {max(0.0, -smallest):.6g} times the identity."
        )
    return array


def check_preconditioner(argument: str, U: ArrayLike) -> Float[np.ndarray, "d d"] | Float[np.ndarray, " d"]:
    """Return U as a positive diagonal (d,) or a symmetric positive definite matrix (d, d).

    Raises:
        ValueError: wrong shape, not finite, or not positive definite.
    """
    if np.ndim(U) != 1:
        return check_spd(argument, U)
    diagonal = check_vector(argument, U)
    if (diagonal <= 0).any():
        index = int(np.argmin(diagonal))
        raise ValueError(
            f"{argument}[{index}]={diagonal[index]} is not positive; pass positive entries (clip or damp U)."
        )
    return diagonal


def dot(a: Float[np.ndarray, "*batch d"], b: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch 1"]:
    """A . b over the last axis, which is kept."""
    return np.asarray((a * b).sum(axis=-1, keepdims=True))


def size(v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch 1"]:
    """Largest |v_i|, or 1 where v = 0; dividing by it first keeps squares from overflow and underflow."""
    largest = np.abs(v).max(axis=-1, keepdims=True)
    return np.where(largest == 0, 1.0, largest)


def length(v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch 1"]:
    """|v| over the last axis, which is kept, without overflow or underflow."""
    scale = size(v)
    return np.asarray(scale * np.sqrt(dot(v / scale, v / scale)))
