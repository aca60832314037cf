"""Out of a cosine pit on the road: the law of one coordinate among many.

A perturbation of fixed length couples all flat coordinates through one number, the length N of U g. With many
of them N hardly fluctuates, and a single coordinate is a Markov chain of its own: from y the two passes and the
noise xi lead to

    y' = y - eta U (f(y + rho U (f(y) + xi)/N) + xi),    f(y) = h y + F sin(2 pi y/l),  F = k l/2 pi.

N is the one that the chain itself has, N^2 = d E[U^2 (f + xi)^2]. The chain on the start pit, killed where it
leaves, is a matrix; its powers say which share is still inside. No perturbation is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import pi, sqrt

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_count, check_number

ROUNDS = 60  # at most, until N agrees with the chain that it makes; round r takes r steps


@dataclass(frozen=True)
class Pit:
    """A flat coordinate in a cosine pit, and who walks there.

    Args:
        eta: step size.
        flat: d, number of flat coordinates that share the perturbation.
        start: where the pit is, a multiple of the period, in weights.
        h: curvature of the bowl, on average over the road.
        k: curvature that the pit adds at its bottom.
        period: l, distance between pits, in weights.
        sigma: size of the gradient noise, the same draw in both passes; positive.
        U: inverse preconditioner of the step in a flat direction; 1/h is the exact one.

    Raises:
        ValueError: a number out of range.

    Source: the book, chapter 20.
    """

    eta: float = 0.005
    flat: int = 20
    start: float = 4.0
    h: float = 0.1
    k: float = 20.0
    period: float = 1.0
    sigma: float = 1.0
    U: float = 10.0

    def __post_init__(self) -> None:
        check_count("flat", self.flat)
        check_number("start", self.start)
        for name in ("eta", "h", "k", "period", "sigma", "U"):
            check_number(name, getattr(self, name), low=0.0, open_low=True)

    def force(self, y: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
        """f(y) = h y + F sin(2 pi y/l)."""
        omega = 2 * pi / self.period
        return np.asarray(self.h * y + self.k / omega * np.sin(omega * y))


def surviving_share(pit: Pit, rho: float, steps: int, cells: int = 200, nodes: int = 81) -> float:
    """Share of flat coordinates that have never left the start pit, many coordinates taken for granted.

    Args:
        pit: the coordinate and its method.
        rho: radius of the perturbation with the Euclidean norm, in weights.
        steps: number of steps.
        cells: points of the grid on the pit.
        nodes: values of the noise, equally spaced over six standard deviations to either side.

    Returns:
        A number between 0 and 1.

    Raises:
        ValueError: a number out of range.

    Source: the book, (20.4); heu-mean-field-escape.
    """
    check_number("rho", rho, low=0.0)
    steps = check_count("steps", steps, low=0)
    half = pit.period / 2
    y = pit.start + half * (2 * (np.arange(cells) + 0.5) / cells - 1)
    t = np.linspace(-6, 6, nodes)
    weight = np.exp(-(t**2) / 2) / np.exp(-(t**2) / 2).sum()
    g = pit.force(y)[:, None] + pit.sigma * t
    rms = np.sqrt(g**2 @ weight)  # of the noisy slope at each place
    inside = np.zeros(cells)
    inside[cells // 2 - 1 : cells // 2 + 1] = 0.5
    law, square = inside, float(inside @ rms**2)
    for turn in range(
        ROUNDS
    ):  # N^2 belongs to all coordinates, those in other pits too: their law is wrapped
        reach = rho / sqrt(pit.flat * square)
        law = law @ np.linalg.matrix_power(_chain(pit, reach, y, g, t, weight, wrapped=True), 1 + turn)
        now = float(law @ rms**2)
        if abs(now - square) < 1e-6 * square:
            break
        square = 0.5 * (square + now)
    chain = _chain(pit, rho / sqrt(pit.flat * square), y, g, t, weight, wrapped=False)
    return float((inside @ np.linalg.matrix_power(chain, steps)).sum())


def escape_radius(pit: Pit, steps: int, share: float = 0.5, high: float = 20.0) -> float:
    """Least radius at which the given share of coordinates has left the pit after so many steps.

    Args:
        pit: the coordinate and its method.
        steps: number of steps.
        share: of coordinates outside, between 0 and 1.
        high: largest radius tried, in weights.

    Returns:
        The radius, to three digits; infinite if not even ``high`` is enough, 0 if no radius is needed.

    Raises:
        ValueError: a number out of range.

    Source: the book, (20.4); heu-mean-field-escape.
    """
    share = check_number("share", share, low=0.0, high=1.0, open_low=True, open_high=True)
    if surviving_share(pit, 0.0, steps) <= 1 - share:
        return 0.0
    radii = np.geomspace(0.02, check_number("high", high, low=0.02), 40)
    for low, top in pairwise(radii):
        if surviving_share(pit, top, steps) <= 1 - share:
            while top / low > 1.001:
                middle = sqrt(low * top)
                low, top = (middle, top) if surviving_share(pit, middle, steps) > 1 - share else (low, middle)
            return float(top)
    return float("inf")


def _chain(
    pit: Pit,
    reach: float,
    y: Float[np.ndarray, " cells"],
    g: Float[np.ndarray, "cells nodes"],
    t: Float[np.ndarray, " nodes"],
    weight: Float[np.ndarray, " nodes"],
    *,
    wrapped: bool,
) -> Float[np.ndarray, "cells cells"]:
    """One step as a matrix: two neighbors on the grid share each landing place; outside is lost, or the next pit."""
    cells = len(y)
    landed = y[:, None] - pit.eta * pit.U * (pit.force(y[:, None] + reach * g) + pit.sigma * t)
    place = (landed - y[0]) / (y[1] - y[0])
    left = np.floor(place).astype(int)
    right_share = place - left
    chain = np.zeros((cells, cells))
    row = np.broadcast_to(np.arange(cells)[:, None], left.shape)
    for column, part in ((left, 1 - right_share), (left + 1, right_share)):
        column = column % cells if wrapped else column
        keep = (column >= 0) & (column < cells)
        np.add.at(chain, (row[keep], column[keep]), (part * weight)[keep])
    return chain
