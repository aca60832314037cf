"""Cycles, basins, multipliers and thresholds found by iterating: the other half of ``stability``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
from jaxtyping import Complex, Float

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import check_vector
from llqr_sam_ref.exact.dynamics import Method, orbit, step
from llqr_sam_ref.exact.landscapes import Landscape


def find_cycle(
    method: Method,
    landscape: Landscape,
    start: Float[np.ndarray, " d"],
    steps: int = 10_000,
    longest: int = 8,
    tolerance: float = 1e-9,
) -> Float[np.ndarray, "period d"]:
    """The cycle that an orbit ends in, found by waiting.

    Args:
        method: the optimizer.
        landscape: the loss.
        start: w_0, shape (d,).
        steps: number of steps to wait.
        longest: longest period looked for.
        tolerance: largest distance between two rounds, relative to the largest coordinate on the cycle.

    Returns:
        The points of the cycle in order, shape (period, d); one point is a fixed point.

    Raises:
        ValueError: wrong shapes or counts.
        RuntimeError: the orbit repeats with no period up to ``longest``.

    Source: the book, (6.2).
    """
    start = check_vector("start", start, landscape.dimension)
    check_count("steps", steps, low=2 * check_count("longest", longest))
    end = np.array(deque(orbit(method, landscape, start, steps), maxlen=2 * longest))
    for period in range(1, longest + 1):
        last, before = end[-period:], end[-2 * period : -period]
        if np.abs(last - before).max() <= tolerance * np.abs(last).max():
            return last
    raise RuntimeError(
        f"no cycle of period up to longest={longest} after steps={steps} steps of {method.name} on "
        f"{landscape.name!r}; raise steps or longest, or expect a wandering orbit."
    )


def find_basin_radius(
    method: Method,
    landscape: Landscape,
    high: float,
    direction: Float[np.ndarray, " d"] | None = None,
    steps: int = 2000,
    rounds: int = 7,
) -> float:
    """Largest distance from the origin, along a direction, from which the orbit ends nearer than it began.

    Each round runs 64 starts at once and narrows the interval 64 times.

    Args:
        method: the optimizer.
        landscape: a loss with a critical point at the origin.
        high: a distance from which the orbit leaves, in weights.
        direction: where to start, shape (d,); the last coordinate by default.
        steps: length of each run.
        rounds: number of refinements.

    Returns:
        The radius, in weights, to high/64^rounds.

    Raises:
        ValueError: wrong shapes or numbers.
        RuntimeError: the orbit that starts at ``high`` stays, or all leave.

    Source: the book, (8.1) and (12.2).
    """
    low, high = 0.0, check_number("high", high, low=0.0, open_low=True)
    if direction is None:
        direction = np.eye(landscape.dimension)[-1]
    direction = check_vector("direction", direction, landscape.dimension)
    direction = direction / np.linalg.norm(direction)
    for _ in range(check_count("rounds", rounds)):
        distances = np.linspace(low, high, 65)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged orbit has left
            *_, end = islice(orbit(method, landscape, distances[1:, None] * direction, steps), steps, None)
            staying = np.flatnonzero(np.linalg.norm(end, axis=-1) < distances[1:])
        if low == 0.0 and not staying.size:
            raise RuntimeError(
                f"{method.name} leaves the origin of {landscape.name!r} from every start tried."
            )
        last = int(staying[-1]) + 1 if staying.size else 0
        if last == 64:
            raise RuntimeError(f"{method.name} stays from high={high:g}; raise high.")
        low, high = float(distances[last]), float(distances[last + 1])
    return (low + high) / 2


def step_jacobian(
    method: Method, landscape: Landscape, w: Float[np.ndarray, " d"], difference: float = 1e-5
) -> Float[np.ndarray, "d d"]:
    """Derivative of one step from rest, T(w) = w - eta U grad L(w + epsilon), by central differences.

    Args:
        method: the optimizer.
        landscape: the loss.
        w: where, shape (d,); T must be smooth there (for normalized rules the gradient must not vanish).
        difference: half the distance between the two points, in weights.

    Returns:
        dT_i/dw_j, shape (d, d).

    Raises:
        ValueError: wrong shapes or numbers.

    Source: the book, (6.3).
    """
    w = check_vector("w", w, landscape.dimension)
    shifts = check_number("difference", difference, low=0.0, open_low=True) * np.eye(len(w))
    change = step(method, landscape, w + shifts) - step(method, landscape, w - shifts)
    return np.asarray(change.T / (2 * difference))


def multipliers(
    method: Method, landscape: Landscape, w: Float[np.ndarray, " d"], difference: float = 1e-5
) -> Complex[np.ndarray, " n"]:
    """Eigenvalues of one step at w: what each small deviation is multiplied by.

    With momentum the state is (w_t, w_{t-1}), and its matrix is [[J + beta I, -beta I], [I, 0]] for the
    derivative J of the step from rest.

    Args:
        method: the optimizer.
        landscape: the loss.
        w: a fixed point, or a point of an antipodal two-cycle (then T(w) = -w), shape (d,).
        difference: see ``step_jacobian``.

    Returns:
        The eigenvalues, largest modulus first, shape (d,), or (2d,) with momentum.

    Raises:
        ValueError: wrong shapes or numbers.

    Source: the book, (6.3) and (19.2); thm-heavy-ball-edge.
    """
    J = step_jacobian(replace(method, beta=0.0), landscape, w, difference)
    if method.beta > 0:
        identity = np.eye(len(J))
        J = np.block([[J + method.beta * identity, -method.beta * identity], [identity, 0 * identity]])
    eigenvalues = np.linalg.eigvals(J).astype(np.complex128)
    return eigenvalues[np.argsort(-np.abs(eigenvalues))]


def bisect(holds: Callable[[float], bool], low: float, high: float, tolerance: float = 1e-12) -> float:
    """The number where a property that holds at ``low`` and fails at ``high`` is lost, by halving.

    Args:
        holds: the property, for instance ``lambda h: abs(multipliers(...)[0]) < 1``.
        low: a number at which the property holds.
        high: a number at which it fails.
        tolerance: final width of the interval, relative to its ends.

    Returns:
        The threshold.

    Raises:
        ValueError: the property does not hold at ``low`` or does not fail at ``high``.

    Source: the book, (2.2) and (19.3).
    """
    low, high = check_number("low", low), check_number("high", high)
    check_number("tolerance", tolerance, low=0.0, open_low=True)
    if not holds(low):
        raise ValueError(f"low={low:g} is not allowed: the property must hold there; move low.")
    if holds(high):
        raise ValueError(f"high={high:g} is not allowed: the property must fail there; move high.")
    while abs(high - low) > tolerance * max(abs(low), abs(high)):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2
