"""Part 5, LLQR+SAM: the theorems of the chapter on escape, each with the mutation that its test must catch.

Letters as in the book: U the frozen preconditioner, H and h the curvature, q the eigenvalues of U^(1/2) H U^(1/2), rho
the radius, epsilon the perturbation, sigma the size of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import acos, exp, gamma, pi, sqrt

import numpy as np
import pytest
from scipy.special import jv

from llqr_sam_ref.exact import dynamics, geometry, landscapes, orbits, stability
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.escape import Pit, escape_radius, surviving_share
from tests.theorems.catalogue import mutation


def _random_spd(rng: np.random.Generator, d: int) -> Array:
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (Q * 10.0 ** rng.uniform(-0.5, 0.5, d)) @ Q.T


def _root(U: Array) -> Array:
    values, vectors = np.linalg.eigh(U)
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


def _length(U: Array, g: Array) -> float:
    return float(np.linalg.norm(U * g))


@mutation("the length is that of g, as if U did not enter it", length=lambda U, g: float(np.linalg.norm(g)))
@mutation("the length is the metric's", length=lambda U, g: float(np.sqrt(g @ (U * g))))
def test_cor_shipped_amplification(length: Callable[[Array, Array], float] = _length) -> None:
    """With the Euclidean norm the SAM part is U_j^2 |g|/|U g| times plain SAM's, and rho chi_j/|U g| times the rest."""
    rng = np.random.default_rng(601)
    for d in (1, 2, 6):
        for _ in range(10):
            eta, rho = 0.01, 0.3
            h, U, x = rng.uniform(-3, 10, d), rng.uniform(0.2, 20, d), rng.standard_normal(d)
            bowl = landscapes.quadratic(np.diag(h))
            without = dynamics.step(dynamics.preconditioned_gd(eta, U), bowl, x) - x
            both = dynamics.step(dynamics.llqr_sam(eta, rho, U), bowl, x) - x - without
            plain = dynamics.step(dynamics.sam(eta, rho), bowl, x) - dynamics.step(dynamics.gd(eta), bowl, x)
            g = h * x
            factor = U**2 * np.linalg.norm(g) / length(U, g)
            np.testing.assert_allclose(both, factor * plain, rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(both, rho * U * h / length(U, g) * without, rtol=1e-9, atol=1e-13)
            if d == 1:
                np.testing.assert_allclose(factor, U, rtol=1e-12)


def _joint(U: Array, H: Array) -> Array:
    return _root(U) @ H @ _root(U)


@mutation("the top eigenvector of H itself", matrix=lambda U, H: H)
def test_thm_alignment_rule(matrix: Callable[[Array, Array], Array] = _joint) -> None:
    """The metric norm ends along the top eigenvector of U^(1/2) H U^(1/2); the Euclidean one is SAM on diag(U h)."""
    rng = np.random.default_rng(602)
    rho = 0.3
    for _ in range(6):
        U, H = _random_spd(rng, 4), _random_spd(rng, 4)
        true = np.linalg.eigvalsh(_joint(U, H))
        eta = 0.5 / true[-1]
        q, v = np.linalg.eigh(matrix(U, H))
        method = dynamics.llqr_sam(eta, rho, U, norm="dual")
        landscape = landscapes.quadratic(H)
        w = dynamics.trajectory(method, landscape, rng.standard_normal(4), 6000)[-1]
        epsilon = dynamics.perturbation(method, H @ w)
        along = _root(U) @ v[:, -1]
        cosine = abs(epsilon @ along) / np.linalg.norm(epsilon) / np.linalg.norm(along)
        assert 1 - cosine < 1e-9
        y = np.linalg.solve(_root(U), w)
        amplitude = eta * rho * q[-1] / (2 - eta * q[-1])
        assert abs(np.linalg.norm(y) / amplitude - 1) < 1e-9
    U, h = rng.uniform(0.1, 5, 4), rng.uniform(0.5, 9, 4)
    q = U * h
    x = rng.standard_normal(4)
    shipped = dynamics.trajectory(dynamics.llqr_sam(0.05, rho, U), landscapes.bowl(h), x, 300)
    plain = dynamics.trajectory(dynamics.sam(0.05, rho), landscapes.bowl(q), x, 300)
    np.testing.assert_allclose(shipped, plain, rtol=0, atol=1e-12)


def _share(k: float, h: Array, U: Array | None, rho: float) -> float:
    """Squared share of the second coordinate in epsilon after many steps at the bottom of the pit."""
    curvatures = h + np.array([0.0, k])
    q = curvatures if U is None else U * curvatures
    eta = 0.5 / float(q.max())
    method = dynamics.sam(eta, rho) if U is None else dynamics.llqr_sam(eta, rho, U)
    bowl = landscapes.bowl(curvatures)
    w = dynamics.trajectory(method, bowl, rho * np.array([0.3, 0.2]), 6000)[-1]
    epsilon = dynamics.perturbation(method, bowl.slope(w))
    return float(epsilon[1] ** 2 / (epsilon @ epsilon))


@mutation("the pit must be twice as stiff as the wall", wall=200.0)
@mutation("U = 1/h is no help", learned=lambda h: None)
@mutation("the question is shared", sharp=lambda share: 0.5)
@mutation("the limit is that of the pit alone", depth=lambda k, h: k)
def test_cor_alignment_pit(
    wall: float = 100.0,
    learned: Callable[[Array], Array | None] = lambda h: 1 / h,
    sharp: Callable[[float], float] = lambda share: min(share, 1 - share),
    depth: Callable[[float, float], float] = lambda k, h: (k + h) / h,
) -> None:
    """SAM's question goes into the pit iff k + h_2 > h_1; with U = 1/h it always does."""
    h = np.array([100.0, 0.1])
    for rho in (0.01, 1.0, 10.0):
        for k in (90.0, 95.0, 105.0, 110.0):
            share = _share(k, h, None, rho)
            assert (share > 0.5) == (k + h[1] > wall)
            assert sharp(share) < 1e-9
        for k in (0.05, 1.0, 20.0):
            assert _share(k, h, learned(h), rho) > 1 - 1e-9
    for k, eta, stable in ((20.0, 0.0099, True), (20.0, 0.01, False)):
        q = depth(k, float(h[1]))
        assert (abs(1 - eta * q) < 1) == stable


@mutation("the exponent without its half", exponent=lambda s: s**2)
def test_thm_gaussian_smoothing(exponent: Callable[[float], float] = lambda s: s**2 / 2) -> None:
    """A mean over normal and over spherical perturbations damps a sine by its factor; the two factors meet."""
    rng = np.random.default_rng(604)
    y, period = 0.17, 1.3
    kappa = 2 * pi / period
    for sigma in (0.1, 0.2, 0.4):
        xi = sigma * rng.standard_normal(1_000_000)
        assert abs(np.sin(kappa * (y + xi)).mean() - exp(-exponent(kappa * sigma)) * np.sin(kappa * y)) < 3e-3
    for d in (5, 20, 60):
        rho = 0.25 * sqrt(d)
        z = rng.standard_normal((200_000, d))
        e = rho * z[:, 0] / np.linalg.norm(z, axis=1)
        order = d / 2 - 1
        factor = gamma(d / 2) * (2 / (kappa * rho)) ** order * jv(order, kappa * rho)
        assert abs(np.sin(kappa * (y + e)).mean() - factor * np.sin(kappa * y)) < 5e-3
        if d == 60:
            assert abs(factor - exp(-exponent(kappa * rho / sqrt(d)))) < 1e-2


def _drive(pit: Pit, rho: float, steps: int, *, known: bool = True, seeds: int = 3) -> tuple[float, float]:
    """Share of coordinates ever out of the start pit, and what is left of the flat bowl's loss."""
    stiff = 5
    road = landscapes.pothole_road(stiff, pit.flat, 100.0, pit.h, pit.k, pit.period)
    h = np.concatenate([np.full(stiff, 100.0), np.full(pit.flat, pit.h)])
    if known:
        method = dynamics.llqr_sam(pit.eta, rho, 1 / h) if rho else dynamics.preconditioned_gd(pit.eta, 1 / h)
    else:
        method = dynamics.sam(0.01, rho)
    rng = np.random.default_rng(605)
    start = np.zeros((seeds, len(h)))
    start[:, stiff:] = pit.start
    ever = np.zeros((seeds, pit.flat), bool)
    noise = pit.sigma * rng.standard_normal((steps, *start.shape))
    for w in dynamics.orbit(method, road, start, steps, noise):
        ever |= np.abs(w[:, stiff:] - pit.start) > pit.period / 2
    return float(ever.mean()), float(np.mean(w[:, stiff:] ** 2) / pit.start**2)


@mutation("the number of flat coordinates is forgotten", dimensions=lambda flat: 1)
def test_heu_smoothing_threshold(dimensions: Callable[[int], int] = lambda flat: flat) -> None:
    """Half of the bowl's loss is gone within a factor 0.65 to 1.4 of the formula; SAM, or U alone, gets nowhere."""
    for pit in (Pit(), Pit(period=2.0, k=10.0), Pit(flat=5), Pit(k=10.0, sigma=0.5)):
        force = pit.k * pit.period / (2 * pi)
        rho = stability.smoothing_radius(pit.period, dimensions(pit.flat), force, pit.h * pit.start)
        assert _drive(pit, 0.5 * rho, 2000)[1] > 0.5
        assert _drive(pit, 1.4 * rho, 2000)[1] < 0.5
    for radius in (0.3, 1.5, 5.0):
        assert _drive(Pit(), radius, 2000, known=False)[0] <= 0.02
    assert _drive(Pit(), 0.0, 2000)[0] <= 0.02


@mutation("every coordinate has the whole radius to itself", shared=lambda flat: 1)
@mutation("the length does not depend on the number of coordinates", shared=lambda flat: 20)
def test_heu_mean_field_escape(shared: Callable[[int], int] = lambda flat: flat) -> None:
    """The radius at which half of the coordinates have ever left: within 15 % in five settings; the chain itself."""
    for pit in (Pit(), Pit(flat=60), Pit(eta=0.002), Pit(period=2.0, k=10.0), Pit(k=40.0, eta=0.0025)):
        predicted = escape_radius(replace(pit, flat=shared(pit.flat)), 1000)
        assert _drive(pit, 0.85 * predicted, 1000)[0] < 0.5
        assert _drive(pit, 1.15 * predicted, 1000)[0] > 0.5
    # Without a question the chain is one coordinate's: compare with 4000 of them.
    hot = Pit(sigma=2.5)
    alone = _drive(replace(hot, flat=1000), 0.0, 500, seeds=4)[0]
    assert abs(1 - surviving_share(hot, 0.0, 500) - alone) < 0.03


def _slope_with_hole(y: Array) -> Array:
    """0.1 y with a Gaussian hole of width 0.1 and curvature 20 at 4."""
    t = (y - 4.0) / 0.1
    return np.asarray(0.1 * y + 0.1 * t * 20 * np.exp(-(t**2) / 2))


@mutation("without a perturbation", rho_scale=0.0)
def test_cex_ghost_point(rho_scale: float = 1.0) -> None:
    """Without noise SAM rests beside a hole at y_p - rho, where the slope is not zero, and no step leads on."""
    hole = landscapes.pothole(np.array([0.1]), hole=20.0, width=0.1, center=4.0)
    bottom = orbits.bisect(lambda y: float(_slope_with_hole(np.array(y))) < 0, 3.95, 4.0)
    U = np.array([10.0])
    eta = 0.005
    curvature = float(hole.curvature(np.array([bottom]))[0, 0])
    for rho in (0.6, 1.0):
        method = dynamics.llqr_sam(eta, rho * rho_scale, U)
        end = dynamics.trajectory(method, hole, np.array([3.95 - 0.5 * rho]), 8000)[-1]
        assert abs(end[0] - (bottom - rho)) < 1e-9
        assert abs(hole.slope(end)[0]) > 0.1
        nudged = dynamics.step(method, hole, end + 1e-6)
        assert abs((nudged - end)[0] / 1e-6 - (1 - eta * 10 * curvature)) < 1e-3
        on = dynamics.trajectory(dynamics.preconditioned_gd(eta, U), hole, end, 8000)[-1]
        assert abs(on[0]) < 1e-6


@mutation("at eta = 4.7 nobody leaves either", kept=(2.2, 3.0, 4.7))
@mutation("the cycle leaves where the arc is a half turn", arc=pi / 2)
@mutation("the cycle moves by the whole sine", share=1.0)
@mutation("at eta = 4.5 they leave", left=4.5)
@mutation("SAM's radius does not count", rho=0.0)
def test_cex_instability_not_escape(
    kept: tuple[float, ...] = (2.2, 3.0, 4.5),
    arc: float = pi,
    share: float = 2.0,
    left: float = 4.7,
    rho: float = 0.5,
) -> None:
    """On 1 - cos y: unstable from eta = 2, left from eta = 4.6033; the two-cycle between; the SAM scan."""
    edge = orbits.bisect(lambda eta: sqrt(eta**2 - 1) - acos(1 / eta) < arc, 2.0, 6.0)
    assert abs(edge - 4.6033) < 1e-4

    def leaving(eta: float, rho: float = 0.0) -> float:
        y = np.linspace(-3.1, 3.1, 801)
        out = np.zeros(801, bool)
        for _ in range(2000):
            g = np.sin(y + rho * np.sin(y))
            y = np.where(out, y, y - eta * g)
            out |= np.abs(y) >= pi
        if rho == 0 and eta == 2.2:
            moved = np.abs(y[np.abs(y) > 1e-9])
            np.testing.assert_allclose(share * moved, eta * np.sin(moved), atol=1e-6)
        return float(out.mean())

    assert all(leaving(eta) == 0 for eta in kept)
    assert leaving(left) > 0.5
    assert abs(1 - 1.34 * (1 + rho)) > 1 > abs(1 - 1.33 * (1 + rho))
    assert leaving(3.0, 0.5) == 0
    first = next(eta for eta in np.arange(1.4, 5, 0.05) if leaving(float(eta), rho) > 0)
    assert abs(first - 4.2) < 0.06


@mutation("U = 1", U=1.0)
@mutation("the SAM part climbs as well", sign=-1.0)
def test_cex_indefinite_preconditioner(U: float = -1.0, sign: float = 1.0) -> None:
    """U = -1: the gradient part climbs, the SAM part descends, g U g is negative; a metric refuses it."""
    h, rho, eta, x = 1.0, 0.3, 0.1, 1.0
    assert abs(-eta * U * h * x - 0.1) < 1e-15
    assert abs(-eta * rho * U**2 * h**2 * x + sign * 0.03) < 1e-15
    assert abs(1 - eta * U * h * (1 + rho * U * h) - 1.07) < 1e-12
    assert U * h**2 < 0
    with pytest.raises(ValueError, match="positive"):
        geometry.Preconditioned(np.array([U]))


def _floor(h: float, U: float, eta: float, rho: float, sigma: float) -> float:
    chi = U * h
    step = eta * (1 + rho * chi)
    return step * U * sigma**2 / (2 * (2 - step * chi))


@mutation(
    "the noise does not pass through U", floor=lambda h, U, eta, rho, sigma: _floor(h, 1, eta, rho, sigma)
)
def test_thm_preconditioned_noise_floor(floor: Callable[..., float] = _floor) -> None:
    """The stationary loss: variance recursion, simulation, and the price of a flat direction."""
    rng = np.random.default_rng(610)
    for h, U, eta, rho, sigma in (
        (1.0, 3.0, 0.1, 0.4, 1.0),
        (0.1, 10.0, 0.2, 1.0, 0.5),
        (5.0, 0.2, 0.5, 0.0, 2.0),
    ):
        chi = U * h
        step = eta * (1 + rho * chi)
        V = 0.0
        for _ in range(5000):
            V = (1 - step * chi) ** 2 * V + (step * U * sigma) ** 2
        assert abs(h * V / 2 / floor(h, U, eta, rho, sigma) - 1) < 1e-10
        method = dynamics.unnormalized_llqr_sam(eta, rho, np.array([U]))
        noise = sigma * rng.standard_normal((400, 4000, 1))
        w = dynamics.trajectory(method, landscapes.bowl(np.array([h])), np.zeros((4000, 1)), 400, noise)[-1]
        assert abs(float(np.mean(h * w**2 / 2)) / floor(h, U, eta, rho, sigma) - 1) < 0.1
    # At the same margin on the stiff direction: U = 1/h in a direction of curvature 0.05 beside plain descent's.
    preconditioned = floor(0.05, 20.0, 1.0, 0.0, 1.0)
    plain = floor(0.05, 1.0, 1.0 / 100.0, 0.0, 1.0)
    assert preconditioned / plain > 100
