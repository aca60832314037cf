"""Part 2, SAM: what maxima and saddles hold, each statement with its mutations.

Letters as in the book: h an eigenvalue of the Hessian, negative here, eta the learning rate, rho the radius.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, landscapes, orbits, stability
from llqr_sam_ref.exact.dynamics import Method
from tests.theorems.catalogue import mutation

CASES = ((2.0, 1.0, 0.01), (0.5, 0.3, 0.4), (20.0, 0.05, 0.01), (3.0, 2.0, 0.95 / 3.0))  # |h|, rho, eta


def _end(rule: Method, size: float, start: float, steps: int = 4000) -> float:
    """|x| after some steps on a maximum with curvature -size."""
    hill = landscapes.hilltop(size)
    return abs(float(dynamics.trajectory(rule, hill, np.array([start]), steps)[-1, 0]))


@mutation("the basin is rho/|h|", basin=lambda size, rho: rho / size)
@mutation(
    "the path comes to rest on the cycle", band=lambda size, rho, eta: eta * size * rho / (2 + eta * size)
)
@mutation("the cycle is that of a valley", cycle=lambda size, rho, eta: eta * rho * size / (2 - eta * size))
@mutation("the cycle attracts", growth=lambda size, eta: 1 - eta * size)
def test_thm_sam_maximum_basin(
    basin: Callable[[float, float], float] = stability.sam_basin_radius,
    band: Callable[[float, float, float], float] = lambda size, rho, eta: eta * size * rho,
    cycle: Callable[[float, float, float], float] = lambda size, rho, eta: (
        eta * size * rho / (2 + eta * size)
    ),
    growth: Callable[[float, float], float] = lambda size, eta: 1 + eta * size,
) -> None:
    """Inside the radius it stays, in a band from some step on; outside it leaves; at the radius it rests."""
    for size, rho, eta in CASES:
        rule, hill = dynamics.sam(eta, rho), landscapes.hilltop(size)
        line = basin(size, rho)
        for start in (0.001 * line, 0.5 * line, 0.999 * line):
            path = np.abs(dynamics.trajectory(rule, hill, np.array([start]), 4000)[:, 0])
            assert path.max() < rho
            assert path[3000:].max() <= band(size, rho, eta) * (1 + 1e-9)
        assert _end(rule, size, line, 200) == pytest.approx(rho, rel=1e-9)
        assert not _end(rule, size, 1.001 * line) < 10 * rho  # far away, or beyond all numbers
        at = cycle(size, rho, eta)
        step = [float(dynamics.step(rule, hill, np.array([at * (1 + k)]))[0]) for k in (0.0, 1e-6)]
        assert step[0] == pytest.approx(-at, rel=1e-12)
        assert abs(step[1] - step[0]) / (1e-6 * at) == pytest.approx(growth(size, eta), rel=1e-6)


@mutation("the threshold is 1/(2|h|)", low=lambda size: 0.5 / size)
@mutation("a step never overshoots", high=lambda size, eta: 10.0 * (1 + 2 / (eta * size)) / size)
def test_thm_usam_saddle_threshold(
    low: Callable[[float], float] = stability.unnormalized_saddle_threshold,
    high: Callable[[float, float], float] = stability.unnormalized_saddle_limit,
) -> None:
    """Held between the two bounds, thrown out below the first and above the second."""
    for size in (0.5, 2.0, 5.0, 40.0):
        for eta in (0.01 / size, 0.3 / size):
            for rho, held in (
                (0.95 * low(size), False),
                (1.05 * low(size), True),
                (0.99 * high(size, eta), True),
                (1.01 * high(size, eta), False),
            ):
                rule = dynamics.unnormalized_sam(eta, rho)
                assert (_end(rule, size, 1e-3, 40) < 1e-3) == held
    # Near a critical point that is not quadratic, too: the saddle between two minima.
    wells = landscapes.double_well_saddle(2.0)
    for rho, held in ((0.95 * low(2.0), False), (1.05 * low(2.0), True)):
        rule = dynamics.unnormalized_sam(0.01, rho)
        assert (abs(dynamics.trajectory(rule, wells, np.array([0.0, 1e-4]), 100)[-1, 1]) < 1e-4) == held


@mutation("SAM's threshold for both", monge=lambda size, rho: rho * size)
@mutation("SAM is held below the slope rho", sam=lambda size, rho: rho)
def test_thm_saddle_pull_back(
    sam: Callable[[float, float], float] = lambda size, rho: stability.pullback_slope(-size, rho),
    monge: Callable[[float, float], float] = lambda size, rho: float(
        np.sqrt((np.sqrt(1 + 4 * rho**2 * size**2) - 1) / 2)
    ),
) -> None:
    """The downhill coordinate is pushed inward just below the slope and outward just above it."""
    assert stability.pullback_slope(-5.0, 1.0, 1.0) == pytest.approx(monge(5.0, 1.0))
    for size in (1.0, 5.0):
        saddle = landscapes.saddle(3.0, size)
        for rho in (0.1, 1.0, 4.0):
            for angle in (0.2, 0.8, 1.4):
                toward = np.array([np.cos(angle) / 3.0, np.sin(angle) / size])  # the gradient has length 1
                for slope, rule in (
                    (sam(size, rho), dynamics.sam(1e-6, rho)),
                    (monge(size, rho), dynamics.monge_sam(1e-6, rho)),
                ):
                    for share, inward in ((0.999, True), (1.001, False)):
                        w = share * slope * toward
                        assert (dynamics.step(rule, saddle, w)[1] < w[1]) == inward


@mutation("a valley has such a point, too", size=-2.0)
@mutation("the point attracts", growth=lambda size, eta: 1 - eta * size)
def test_cex_sam_spurious_fixed_point(
    size: float = 2.0, growth: Callable[[float, float], float] = lambda size, eta: 1 + eta * size
) -> None:
    """On a maximum x = rho is mapped to itself, on a slope, and repels."""
    rho, eta = 0.5, 0.1
    land, rule = landscapes.quadratic(np.array([[-size]])), dynamics.sam(eta, rho)
    here = np.array([rho])
    assert dynamics.step(rule, land, here) == pytest.approx(here, abs=1e-15)
    assert land.gradient(here)[0] == pytest.approx(-size * rho)
    assert orbits.step_jacobian(rule, land, here)[0, 0] == pytest.approx(growth(size, eta), rel=1e-6)
    valley = landscapes.quadratic(np.array([[2.0]]))
    assert abs(dynamics.step(rule, valley, here)[0] - rho) == pytest.approx(eta * 2.0 * 2 * rho)
