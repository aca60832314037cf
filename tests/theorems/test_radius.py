"""Part 3, Monge SAM: its radius, its cycle, its basin, and the rulers related to it, each with its mutations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2

from llqr_sam_ref.exact import dynamics, geometry, landscapes, orbits, stability, trust_region
from llqr_sam_ref.exact._arrays import Array
from tests.exact.numerical import relative
from tests.theorems.catalogue import mutation


def _spd(rng: np.random.Generator, d: int) -> Array:
    A = rng.standard_normal((d, d))
    return A @ A.T + 0.3 * np.eye(d)


def _limit(a: float) -> float:
    return float((2 - a) ** 1.5 / (2 * np.sqrt(a) * (1 - a))) if a < 1 else np.inf


def _along(h: float, eta: float, b: float) -> float:
    return 1 - eta * h + (2 - eta * h) * (h * b) ** 2 / (1 + (h * b) ** 2)


@mutation("SAM's factor along the cycle", along=lambda h, eta, b: 1 - eta * h)
@mutation("the limit is SAM's: none", limit=lambda a: np.inf)
@mutation("across, the other curvature decides", across=lambda h, top, eta: 1 - eta * top - (2 - eta * top))
def test_thm_msam_cycle_stability(
    along: Callable[[float, float, float], float] = _along,
    limit: Callable[[float], float] = _limit,
    across: Callable[[float, float, float], float] = stability.cycle_multipliers,
) -> None:
    """Factors along and across the cycle against differences; returns inside the limit, leaves outside."""
    rng = np.random.default_rng(331)
    verdicts = set()
    for _ in range(60):
        a, h = float(rng.uniform(0.1, 1.7)), float(np.exp(rng.uniform(-2, 2)))
        eta, rho = a / h, float(np.exp(rng.uniform(-3, 3))) / h
        b, rule = stability.monge_cycle_amplitude(h, eta, rho), dynamics.monge_sam(eta, rho)
        land = landscapes.quadratic(np.diag([0.4 * h, h]))
        at = np.array([0.0, b])
        J = orbits.step_jacobian(rule, land, at)
        assert J[1, 1] == pytest.approx(along(h, eta, b), abs=1e-5)
        assert J[0, 0] == pytest.approx(across(0.4 * h, h, eta), abs=1e-5)
        held = rho * h < limit(a)
        if abs(along(h, eta, b) - 1) > 0.03:
            end = dynamics.trajectory(rule, land, at * (1 + 1e-5), 900)[-1]
            assert (abs(abs(end[1]) / b - 1) < 1e-5) == held
            verdicts.add(held)
    assert verdicts == {True, False}


@mutation("a tenth of the radius", rho=1.0)
def test_cex_msam_unstable_cycle(rho: float = 10.0) -> None:
    """Beside its cycle M-SAM leaves it, bounded; SAM comes to its own."""
    bowl, eta = landscapes.quadratic(np.eye(1)), 0.4
    b = stability.monge_cycle_amplitude(1.0, eta, rho)
    late = np.abs(dynamics.trajectory(dynamics.monge_sam(eta, rho), bowl, np.array([b * (1 + 1e-6)]), 4000))[
        -1000:
    ]
    assert late.max() - late.min() > 0.2 * b
    assert late.max() <= eta * rho / (1 - 0.6) + 1e-9
    assert f"{_limit(0.4):.3f}" == "2.667"
    sam = np.abs(dynamics.trajectory(dynamics.sam(eta, rho), bowl, np.array([0.3]), 4000))[-1000:]
    assert np.ptp(sam) < 1e-9
    assert sam[-1] == pytest.approx(stability.sam_cycle_amplitude(1.0, eta, rho))


def _basin(size: float, rho: float) -> float:
    return float(np.sqrt((np.sqrt(1 + 4 * (rho * size) ** 2) - 1) / 2) / size)


@mutation("SAM's basin", basin=lambda size, rho: rho)
@mutation("a big step does not matter", thrown=1.0)
@mutation("the ratio falls by the whole square", small=lambda q: 1 - q * q)
@mutation("the ratio falls like 1/(rho |h|)", large=lambda q: 1 / q)
def test_thm_msam_maximum_basin(
    basin: Callable[[float, float], float] = _basin,
    thrown: float = 1.2,
    small: Callable[[float], float] = lambda q: 1 - q * q / 2,
    large: Callable[[float], float] = lambda q: q**-0.5,
) -> None:
    """Held below, gone above; thrown out from near 0 where a step is longer than the basin; both limits."""
    for size, rho, eta in (
        (2.0, 1.0, 0.01),
        (1.0, 0.1, 0.1),
        (5.0, 0.5, 0.01),
        (20.0, 0.5, 0.002),
        (0.5, 4.0, 0.1),
    ):
        hill, rule, b = landscapes.hilltop(size), dynamics.monge_sam(eta, rho), basin(size, rho)
        for share in (1e-3, 0.5, 0.999):
            assert np.abs(dynamics.trajectory(rule, hill, np.array([share * b]), 4000)).max() < b
        assert not abs(dynamics.trajectory(rule, hill, np.array([1.001 * b]), 20000)[-1, 0]) < 10 * b
    big = thrown * basin(2.0, 1.0) / (2.0 * 1.0)
    first = dynamics.step(dynamics.monge_sam(big, 1.0), landscapes.hilltop(2.0), np.array([1e-9]))
    assert abs(first[0]) > 1.1 * basin(2.0, 1.0)
    for q in (0.01, 0.1):
        assert abs(basin(1.0, q) / q - small(q)) < q**4
    for q in (1e4, 1e6):
        assert basin(1.0, q) / q / large(q) == pytest.approx(1, abs=1e-3)


@mutation("q + alpha^2 q under the root", root=lambda q, alpha: np.sqrt(q + alpha**2 * q))
def test_prop_rank_one_metric(
    root: Callable[[float, float], float] = lambda q, alpha: float(np.sqrt(q * (1 + alpha**2 * q))),
) -> None:
    """The closed form against the steepest step under the assembled metric."""
    rng = np.random.default_rng(332)
    for _ in range(20):
        d, alpha, rho = int(rng.integers(1, 6)), float(rng.uniform(0, 3)), 0.3
        D, g = _spd(rng, d), 10 ** float(rng.uniform(-2, 1)) * rng.standard_normal(d)
        G = geometry.PositiveDefinite(D + alpha**2 * np.outer(g, g))
        solved = np.linalg.solve(D, g)
        claimed = rho * solved / root(float(g @ solved), alpha)
        assert relative(claimed, geometry.ascent_step(g, rho, G)) < 1e-9


@mutation("the covariance in place of F", second=lambda grads: np.cov(grads.T, bias=True))
def test_thm_fisher_monge_order(
    second: Callable[[Array], Array] = lambda grads: grads.T @ grads / len(grads),
) -> None:
    """F - gg' is the covariance; the metrics, the balls and the rises are ordered."""
    rng = np.random.default_rng(333)
    for _ in range(30):
        d, rho = int(rng.integers(2, 6)), 0.4
        grads = rng.standard_normal((int(rng.integers(2, 9)), d)) + rng.standard_normal(d)
        g, F = grads.mean(axis=0), second(grads)
        assert np.abs(F - np.outer(g, g) - np.cov(grads.T, bias=True)).max() < 1e-12
        metrics = [geometry.PositiveDefinite(np.eye(d) + M) for M in (F, np.outer(g, g), 0 * F)]
        gains = [float(g @ geometry.ascent_step(g, rho, metric)) for metric in metrics]
        assert gains[0] <= gains[1] * (1 + 1e-12) <= gains[2] * (1 + 2e-12)
        inside = rho * rng.standard_normal(d)
        inside /= np.sqrt(inside @ (np.eye(d) + F) @ inside) / rho
        assert inside @ (np.eye(d) + np.outer(g, g)) @ inside <= rho**2 * (1 + 1e-12)
        assert inside @ inside <= inside @ (np.eye(d) + np.outer(g, g)) @ inside


@mutation("two different samples", copies=lambda g: np.stack([g, -0.5 * g]))
def test_cor_monge_batch_one(copies: Callable[[Array], Array] = lambda g: np.stack([g] * 7)) -> None:
    """One sample, or equal ones: the same ruler, the same step; different ones: another ruler."""
    rng = np.random.default_rng(334)
    for grads in (rng.standard_normal((1, 4)), copies(rng.standard_normal(4))):
        g, F = grads.mean(axis=0), grads.T @ grads / len(grads)
        assert np.abs(F - np.outer(g, g)).max() < 1e-14
        fisher = geometry.ascent_step(g, 0.3, geometry.PositiveDefinite(np.eye(4) + F))
        assert relative(fisher, geometry.ascent_step(g, 0.3, geometry.Monge(g))) < 1e-12
    grads = rng.standard_normal((2, 4))
    assert np.abs(grads.T @ grads / 2 - np.outer(grads.mean(0), grads.mean(0))).max() > 1e-2


def _contrastive(Z: Array, T: Array, temperature: complex) -> Array:
    """Mean of the cross-entropies of rows and columns; embeddings are normalized first."""
    Z, T = (E / np.sqrt(np.sum(E * E, axis=1, keepdims=True)) for E in (Z, T))
    logits = Z @ T.T / temperature
    both = [np.mean(np.log(np.exp(M).sum(axis=1)) - np.diagonal(M)) for M in (logits, logits.T)]
    return np.asarray(np.mean(both))


@mutation("the captions point anywhere", spoiled=1.0)
@mutation("the curvature is 1/T", factor=1.0)
def test_thm_collapse_saddle(spoiled: float = 0.0, factor: float = 2.0) -> None:
    """Loss ln B, no slope by embeddings and temperature, curvatures -2/T and +2/T times the mean square."""
    rng, B, d, temperature = np.random.default_rng(335), 128, 16, 0.3
    basis = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
    u, n = basis[0], basis[2]
    v = 0.6 * basis[0] + 0.8 * basis[1]
    Z, T = np.tile(u, (B, 1)), np.tile(v, (B, 1)) + spoiled * rng.standard_normal((B, d))
    assert float(_contrastive(Z, T, temperature)) == pytest.approx(np.log(B), abs=1e-10)
    for _ in range(5):
        turn, other = 1e-30j * rng.standard_normal((B, d)), 1e-30j * rng.standard_normal((B, d))
        slope = _contrastive(Z + turn, T + other, temperature + 1e-30j).imag / 1e-30
        assert abs(slope) < 1e-12
    a = rng.standard_normal(B)
    a -= a.mean()
    for sign in (1, -1):
        delta = 1e-3
        moved = _contrastive(Z + delta * np.outer(a, n), T + sign * delta * np.outer(a, n), temperature)
        second = 2 * (float(moved) - np.log(B)) / delta**2
        assert second == pytest.approx(-sign * factor / temperature * np.mean(a * a), rel=1e-3)


@mutation("a quarter of the second term", share=0.25)
def test_prop_gaussian_radius_tail(share: float = 1.0) -> None:
    """Exact tails of the length: never above 1/sqrt(n); the concentration inequality is behind it."""
    for d in (1, 3, 10, 100, 1000, 10**5):
        for n in (2.0, 10.0, 1e3, 1e6, 1e9):
            length = np.sqrt(d) + share * np.sqrt(np.log(n))
            assert chi2.sf(length**2, d) <= n**-0.5


def _extra(nu: float, g: Array, e: Array, H: Array) -> Array:
    return -2 * nu * (g @ e) * H @ e


@mutation("the metric might as well stand still", extra=lambda nu, g, e, H: 0 * e)
def test_thm_envelope_moving_metric(extra: Callable[[float, Array, Array, Array], Array] = _extra) -> None:
    """Worst loss in Monge's moving ellipse: its numerical gradient has the stated extra term."""
    rng = np.random.default_rng(336)
    for _ in range(8):
        d, rho = int(rng.integers(2, 5)), float(rng.uniform(0.3, 0.8))
        H, w = _spd(rng, d), rng.standard_normal(d)

        def worst(w: Array, H: Array = H, rho: float = rho) -> Array:
            g = H @ w
            values, vectors = np.linalg.eigh(np.eye(len(w)) + np.outer(g, g))
            half = vectors @ np.diag(values**-0.5) @ vectors.T
            return np.asarray(half @ trust_region.trust_region_step(half @ g, half @ H @ half, rho))

        def value(w: Array, H: Array = H, worst: Callable[[Array], Array] = worst) -> float:
            return float((w + worst(w)) @ H @ (w + worst(w)) / 2)

        e, g = worst(w), H @ w
        there = H @ (w + e)
        claimed = there + extra(float(e @ there) / (2 * rho**2), g, e, H)
        steps = 1e-4 * np.eye(d)
        measured = np.array([(value(w + s) - value(w - s)) / 2e-4 for s in steps])
        assert relative(claimed, measured) < 1e-6
