"""Facts about SAM, M-SAM and relatives, one after the other (hence the length): what holds, at which order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, landscapes, stability
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.dynamics import Method, perturbation, step, trajectory
from llqr_sam_ref.exact.geometry import (
    Adaptive,
    Metric,
    Monge,
    PositiveDefinite,
    Preconditioned,
    ascent_gain,
    ascent_step,
    metric_length,
)
from llqr_sam_ref.exact.orbits import find_basin_radius, find_cycle, step_jacobian
from llqr_sam_ref.exact.pnorms import dual_norm, pnorm_step
from llqr_sam_ref.exact.trust_region import trust_region_step
from tests.exact.numerical import numerical_gradient
from tests.exact.relaxed import random_spd

BANANA = landscapes.banana()


def parabola(h: float) -> landscapes.Landscape:
    return landscapes.quadratic(np.array([[h]]))


# The steepest step ---


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, 8.0])
def test_the_dual_norm_bounds_the_rise_over_a_p_ball(p: float, rng: np.random.Generator) -> None:
    g = rng.normal(size=4)
    step = pnorm_step(g, 0.3, p)
    assert np.linalg.norm(step, p) == pytest.approx(0.3, rel=1e-12)
    assert g @ step == pytest.approx(0.3 * float(dual_norm(g, p)), rel=1e-12)
    sphere = rng.normal(size=(200_000, 4))
    sphere *= 0.3 / np.linalg.norm(sphere, p, axis=-1, keepdims=True)
    assert (sphere @ g).max() <= 0.3 * dual_norm(g, p)


def test_any_metric_gives_its_radius_and_its_gain(rng: np.random.Generator) -> None:
    for d in range(1, 8):
        G, g = random_spd(rng, d), rng.normal(size=d)
        step = ascent_step(g, 0.3, PositiveDefinite(G))
        assert step @ G @ step == pytest.approx(0.09, rel=1e-12)
        assert g @ step == pytest.approx(0.3 * np.sqrt(g @ np.linalg.solve(G, g)), rel=1e-12)


@pytest.mark.parametrize("slope", [1e-3, 0.1, 1.0, 10.0])
def test_the_inverse_of_the_monge_metric(slope: float, rng: np.random.Generator) -> None:
    g = rng.normal(size=5)
    g *= slope / np.linalg.norm(g)
    inverse = np.eye(5) - np.outer(g, g) / (1 + slope**2)
    np.testing.assert_allclose(Monge(g).matrix(5) @ inverse, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(Monge(g).solve(np.eye(5)), inverse, atol=1e-12)


@pytest.mark.parametrize("slope", [1e-6, 1e-3, 1.0, 1e3])
def test_m_sam_is_the_seam_with_the_dense_monge_metric(slope: float, rng: np.random.Generator) -> None:
    g = rng.normal(size=5)
    g *= slope / np.linalg.norm(g)
    dense = np.linalg.solve(np.eye(5) + np.outer(g, g), g)
    template = 0.3 * dense / np.sqrt(g @ dense)
    np.testing.assert_allclose(perturbation(dynamics.monge_sam(0.1, 0.3), g), template, rtol=1e-9)


@pytest.mark.parametrize("slope", [1e-6, 0.1, 1.0, 3.0, 10.0, 1e3])
def test_m_sam_bounds_the_step_and_the_rise(slope: float, rng: np.random.Generator) -> None:
    rho, g = 0.3, rng.normal(size=5)
    g *= slope / np.linalg.norm(g)
    epsilon = perturbation(dynamics.monge_sam(0.1, rho), g)
    length, rise = float(np.linalg.norm(epsilon)), float(g @ epsilon)
    assert length == pytest.approx(rho / np.hypot(1, slope), rel=1e-12)
    assert length <= min(rho, rho / slope)
    assert rise == pytest.approx(rho * slope / np.hypot(1, slope), rel=1e-12)
    assert rise < min(rho, rho * slope)
    assert np.hypot(length, rise) == pytest.approx(rho, rel=1e-12)  # length on the graph


def test_m_sam_lies_between_sam_and_gradient_descent() -> None:
    gradients = np.outer([1e-6, 1e3], [0.6, 0.8])
    flat, steep = np.linalg.norm(perturbation(dynamics.monge_sam(0.1, 1.0), gradients), axis=-1)
    assert abs(flat - 1) < 1e-11
    assert steep == pytest.approx(9.999995e-4, abs=1e-9)


# The min-max objective ---


def test_the_exact_objective_needs_no_hessian(rng: np.random.Generator) -> None:
    for _ in range(5):
        H, x = random_spd(rng, 5), rng.normal(size=5)

        def worst_loss(x: Array, H: Array = H) -> float:
            neighbor = x + trust_region_step(H @ x, H, 0.4)
            return float(neighbor @ H @ neighbor / 2)

        envelope = H @ (x + trust_region_step(H @ x, H, 0.4))
        np.testing.assert_allclose(numerical_gradient(worst_loss, x), envelope, rtol=1e-8, atol=1e-8)


def dropped_term(landscape: landscapes.Landscape, w: Array, rho: float) -> Array:
    g, H = landscape.gradient(w), landscape.hessian(w)
    s = np.linalg.norm(g)
    D = rho / s * (np.eye(w.size) - np.outer(g, g) / s**2) @ H
    return D.T @ landscape.gradient(w + ascent_step(g, rho))


@pytest.mark.parametrize("rho", [0.4, 0.1, 0.01])
def test_the_gradient_of_sams_surrogate_has_one_more_term(rho: float) -> None:
    w = np.array([2.0, 1.0])

    def surrogate(w: Array) -> float:
        return float(BANANA.value(w + ascent_step(BANANA.gradient(w), rho)))

    kept = BANANA.gradient(w + ascent_step(BANANA.gradient(w), rho))
    full = kept + dropped_term(BANANA, w, rho)
    np.testing.assert_allclose(numerical_gradient(surrogate, w), full, rtol=1e-7)


def test_the_dropped_term_is_of_second_order(rng: np.random.Generator) -> None:
    bowl, w = landscapes.quadratic(random_spd(rng, 5)), rng.normal(size=5)
    ratio = [np.linalg.norm(dropped_term(bowl, w, rho)) / rho**2 for rho in (1e-1, 1e-2, 1e-3)]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    home = np.array([2.0, 1.0])
    np.testing.assert_allclose(dropped_term(BANANA, home, 0.1), (-0.002946, 0.005893), atol=5e-7)
    settling = [np.linalg.norm(dropped_term(BANANA, home, rho)) / rho**2 for rho in (0.4, 0.2, 0.1, 0.05)]
    np.testing.assert_allclose(settling, (1.05, 0.79, 0.66, 0.60), atol=5e-3)


def test_the_first_order_neighbor_misses_a_third_order_loss(rng: np.random.Generator) -> None:
    H, x = random_spd(rng, 5), rng.normal(size=5)
    g = H @ x
    gap = []
    for rho in (1e-1, 1e-2, 1e-3):
        exact, first = trust_region_step(g, H, rho), ascent_step(g, rho)
        gap.append((g @ (exact - first) + (exact @ H @ exact - first @ H @ first) / 2) / rho**3)
    assert gap[0] == pytest.approx(gap[1], rel=0.3)
    assert gap[1] == pytest.approx(gap[2], rel=0.03)


def test_ball_and_average_sharpness_at_a_minimum(rng: np.random.Generator) -> None:
    H, rho = random_spd(rng, 6), 0.3
    top = np.linalg.eigvalsh(H)[-1]
    e = trust_region_step(np.zeros(6), H, rho)
    assert e @ H @ e / 2 == pytest.approx(rho**2 * top / 2, rel=1e-12)
    sphere = rng.normal(size=(400_000, 6))
    sphere *= rho / np.linalg.norm(sphere, axis=-1, keepdims=True)
    average = np.mean(np.sum(sphere * (sphere @ H), axis=-1) / 2)
    assert average == pytest.approx(rho**2 * np.trace(H) / 12, rel=5e-3)


# Cycles on a quadratic ---


def test_sam_bounces_along_the_top_eigenvector_for_ever(rng: np.random.Generator) -> None:
    bowl = landscapes.bowl(np.array([4.0, 2.0, 1.0, 0.5]))
    path = trajectory(dynamics.sam(0.1, 0.1), bowl, rng.normal(size=(3, 4)), 5000)[-100:]
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), 0.025, rtol=1e-10)
    np.testing.assert_allclose(np.abs(path[..., 0]), 0.025, rtol=1e-10)
    np.testing.assert_allclose(path[1:], -path[:-1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("eta_h", [0.04, 0.4, 0.8, 1.2, 1.6])
def test_the_amplitude_holds_up_to_the_step_limit(eta_h: float) -> None:
    cycle = find_cycle(dynamics.sam(eta_h / 4, 0.1), parabola(4.0), np.array([1.0]))
    expected = {0.04: 0.002041, 0.4: 0.025, 0.8: 0.066667, 1.2: 0.15, 1.6: 0.4}[eta_h]
    assert np.abs(cycle).max() == pytest.approx(expected, abs=5e-7)
    assert stability.sam_cycle_amplitude(4.0, eta_h / 4, 0.1) == pytest.approx(expected, abs=5e-7)


def test_the_multiplier_across_the_cycle() -> None:
    bowl = landscapes.bowl(np.array([4.0, 2.0]))
    across = step_jacobian(dynamics.sam(0.1, 0.1), bowl, np.array([0.025, 0.0]), 1e-7)[1, 1]
    assert across == pytest.approx(0.4, abs=1e-6)
    assert stability.cycle_multipliers(2.0, 4.0, 0.1) == pytest.approx(0.4, rel=1e-14)
    assert stability.cycle_multipliers(4.0, 2.0, 0.1) == pytest.approx(-6.6, rel=1e-14)


def test_m_sams_amplitude() -> None:
    cycle = find_cycle(dynamics.monge_sam(0.1, 0.1), parabola(4.0), np.array([1.0]))
    assert np.abs(cycle).max() == pytest.approx(0.024877137294, abs=1e-12)
    assert stability.monge_cycle_amplitude(4.0, 0.1, 0.1) == pytest.approx(0.024877137294, abs=1e-12)


@pytest.mark.parametrize(("eta", "sam", "monge"), [(0.66, 0.582353, 0.438034), (0.74, 0.853846, 0.565550)])
def test_the_published_divergence_is_a_bounded_cycle(eta: float, sam: float, monge: float) -> None:
    for method, amplitude in ((dynamics.sam(eta, 0.3), sam), (dynamics.monge_sam(eta, 0.3), monge)):
        cycle = find_cycle(method, parabola(2.0), np.array([0.1]))
        assert np.abs(cycle).max() == pytest.approx(amplitude, abs=1e-6)


def test_unnormalized_sam_converges_on_a_quadratic() -> None:
    bowl, h = landscapes.bowl(np.array([4.0, 2.0, 1.0, 0.5])), np.array([4.0, 2.0, 1.0, 0.5])
    path = trajectory(dynamics.unnormalized_sam(0.1, 0.1), bowl, np.ones(4), 3000)
    assert np.linalg.norm(path[-1]) < 1e-12
    np.testing.assert_allclose(path[50], (1 - 0.1 * h * (1 + 0.1 * h)) ** 50, rtol=1e-10)


# Saddles and maxima ---


def test_unnormalized_sam_is_trapped_above_its_threshold_only() -> None:
    assert stability.unnormalized_saddle_threshold(2.0) == 0.5
    hilltop, start = landscapes.hilltop(2.0), np.array([0.5])
    leaves, rests, trapped = (
        trajectory(dynamics.unnormalized_sam(0.01, rho), hilltop, start, 18_000)[-1, 0]
        for rho in (0.4, 0.5, 0.6)
    )
    assert leaves > 1e20
    assert rests == pytest.approx(0.5, rel=1e-9)
    assert abs(trapped) < 1e-30


def test_a_maximum_traps_sam_within_rho_and_m_sam_within_less() -> None:
    hilltop = landscapes.hilltop(2.0)
    assert find_basin_radius(dynamics.sam(0.01, 1.0), hilltop, 2.0) == pytest.approx(1.0, abs=1e-9)
    assert find_basin_radius(dynamics.monge_sam(0.01, 1.0), hilltop, 2.0) == pytest.approx(0.624811, abs=1e-6)
    assert stability.monge_basin_radius(2.0, 1.0) == pytest.approx(np.sqrt((np.sqrt(17) - 1) / 8), rel=1e-15)
    end = trajectory(dynamics.sam(0.01, 1.0), hilltop, np.array([0.9]), 2000)[-1]
    assert abs(end[0]) <= 0.02 * (1 + 1e-12)


@pytest.mark.parametrize(("start", "steps"), [(1.001, 546), (1.2, 278)])
def test_how_long_it_takes_to_leave_the_hilltop(start: float, steps: int) -> None:
    path = trajectory(dynamics.sam(0.01, 1.0), landscapes.hilltop(2.0), np.array([start]), 600)
    assert np.argmax(np.abs(path[:, 0]) > 50) == steps


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("rho", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("h", [1.0, 5.0])
def test_a_saddle_pulls_back_below_a_slope(alpha: float, rho: float, h: float) -> None:
    saddle, threshold = landscapes.saddle(3.0, h), stability.pullback_slope(h, rho, alpha)
    method = dynamics.monge_sam(1e-6, rho, alpha)
    for angle in (0.2, 0.8, 1.4):
        g = np.array([np.cos(angle), np.sin(angle)])
        for factor, outward in ((0.999, False), (1.001, True)):
            w = factor * threshold * g / np.array([3.0, -h])
            moved = step(method, saddle, w) - w
            assert (moved[1] * w[1] > 0) == outward


def test_the_banana_from_the_published_start() -> None:
    start = np.array([-1.5, 0.5])
    sam = trajectory(dynamics.sam(0.01, 1.0), BANANA, start, 200)[-1]
    monge = trajectory(dynamics.monge_sam(0.01, 1.0), BANANA, start, 200)[-1]
    assert np.linalg.norm(sam) < 0.05
    assert BANANA.value(sam) == pytest.approx(0.99998, abs=5e-6)
    assert np.linalg.norm(monge - [-1, -1]) == pytest.approx(0.08015, abs=1e-5)
    assert BANANA.value(monge) == pytest.approx(0.0121, abs=5e-5)


def race(metric: Callable[[Array, Array], Metric], w: Array) -> Array:
    """200 steps on the banana with the seam under a metric that follows the weights or the gradient."""
    for _ in range(200):
        g = BANANA.gradient(w)
        w = w - 0.01 * BANANA.gradient(w + ascent_step(g, 1.0, metric(w, g)))
    return w


def grid() -> Array:
    line = np.linspace(-3, 3, 10)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(100, 2)


def stranded_and_home(end: Array) -> tuple[int, int]:
    """Near the saddle (within 0.5), and near a flat minimum (within 0.25)."""
    home = np.minimum(np.linalg.norm(end - 1, axis=-1), np.linalg.norm(end + 1, axis=-1)) < 0.25
    return int(np.sum(np.linalg.norm(end, axis=-1) < 0.5)), int(np.sum(home))


@pytest.mark.parametrize(
    ("method", "stranded", "home"),
    [
        (dynamics.gd(0.01), 10, 10),
        (dynamics.sam(0.01, 1.0), 32, 68),
        (dynamics.monge_sam(0.01, 1.0), 16, 84),
        (dynamics.clipped_sam(0.01, 1.0), 16, 84),
        (dynamics.sam(0.01, 0.5), 12, 72),
        (dynamics.sam(0.01, 0.6), 16, 84),
        (dynamics.sam(0.01, 0.7), 20, 80),
    ],
    ids=lambda case: f"{case.name} {case.rho}" if isinstance(case, Method) else None,
)
def test_a_hundred_runners_on_the_banana(method: Method, stranded: int, home: int) -> None:
    counts = stranded_and_home(trajectory(method, BANANA, grid(), 200)[-1])
    np.testing.assert_allclose(counts, (stranded, home), atol=1)


def test_the_runners_under_metrics_that_follow_the_weights() -> None:
    adaptive = race(lambda w, g: Adaptive(w), grid())
    np.testing.assert_allclose(stranded_and_home(adaptive), (10, 10), atol=1)
    fisher = [race(lambda w, g: Preconditioned(1 / (1 + g**2)), start) for start in grid()[::5]]
    monge = trajectory(dynamics.monge_sam(0.01, 1.0), BANANA, grid()[::5], 200)[-1]
    assert stranded_and_home(np.array(fisher)) == stranded_and_home(monge)


# What the update minimizes ---

HOME = np.array([2.0, 1.0])


@pytest.mark.parametrize(
    ("make", "rule", "errors"),
    [
        (dynamics.sam, lambda s: 1.0, (0.0521, 0.00515, 0.000515)),
        (dynamics.unnormalized_sam, lambda s: s, None),
        (dynamics.monge_sam, lambda s: 1 / np.hypot(1, s), (0.0113, 0.00112, 0.000112)),
    ],
    ids=["SAM: |g|", "unnormalized: |g|^2/2", "M-SAM: asinh |g|"],
)
def test_the_hidden_regularizer(
    make: Callable[[float, float], Method], rule: Callable[[float], float], errors: tuple[float, ...] | None
) -> None:
    """grad L(w + epsilon) = g + rho grad R(|g|) + O(rho^2), with grad R = r(|g|) H g/|g|."""
    g = BANANA.gradient(HOME)
    s = float(np.linalg.norm(g))
    regularizer = rule(s) * BANANA.hessian(HOME) @ g / s
    relative = []
    for rho in (1e-1, 1e-2, 1e-3):
        change = BANANA.gradient(HOME + perturbation(make(0.1, rho), g)) - g
        relative.append(np.linalg.norm(change / rho - regularizer) / np.linalg.norm(regularizer))
    assert relative[0] / relative[1] == pytest.approx(10, abs=1)
    assert relative[1] / relative[2] == pytest.approx(10, abs=0.2)
    if errors is not None:
        np.testing.assert_allclose(relative, errors, rtol=0.01)


def test_m_sam_does_not_descend_its_own_linearized_objective() -> None:
    g = BANANA.gradient(HOME)
    s = float(np.linalg.norm(g))
    own = BANANA.hessian(HOME) @ g / s / (1 + s**2) ** 1.5  # gradient of s/sqrt(1 + s^2)
    change = (BANANA.gradient(HOME + perturbation(dynamics.monge_sam(0.1, 1e-6), g)) - g) / 1e-6
    assert np.linalg.norm(change - own) / np.linalg.norm(own) == pytest.approx(s**2, rel=1e-2)


# Batches ---


def test_smaller_shards_make_a_stronger_perturbation(rng: np.random.Generator) -> None:
    gradients = rng.normal(size=(16, 3)) + 0.3

    def shard_gain(m: int) -> float:
        return float(np.mean(ascent_gain(gradients.reshape(16 // m, m, 3).mean(axis=1), 0.1)))

    values = [shard_gain(m) for m in (16, 8, 4, 2, 1)]
    assert (np.diff(values) >= 0).all()
    assert values[0] == pytest.approx(float(ascent_gain(gradients.mean(0), 0.1)), rel=1e-14)
    four = np.array([[3.0, 4.0], [3.0, -4.0], [-1.0, 2.0], [5.0, 0.0]])
    for m, expected in ((4, 2.549510), (2, 2.618034), (1, 4.309017)):
        shards = four.reshape(4 // m, m, 2).mean(axis=1)
        assert np.mean(ascent_gain(shards, 1.0)) == pytest.approx(expected, abs=5e-7)


def test_shards_as_large_as_the_batch_are_plain_sam(rng: np.random.Generator) -> None:
    H, centers, w, rho = (
        np.array([random_spd(rng, 3) for _ in range(16)]),
        rng.normal(size=(16, 3)),
        np.ones(3),
        0.5,
    )

    def gradients(w: Array) -> Array:
        """Of all 16 samples, each at its own point."""
        return np.einsum("nij,nj->ni", H, w - centers)

    def m_sam(m: int) -> Array:
        shards = gradients(np.tile(w, (16, 1))).reshape(16 // m, m, 3).mean(axis=1)
        return np.asarray(gradients(w + np.repeat(ascent_step(shards, rho), m, axis=0)).mean(axis=0))

    whole = landscapes.quadratic(H.mean(0))
    pull = np.einsum("nij,nj->i", H, centers) / 16
    sam = w - step(dynamics.sam(1.0, rho), whole, w, noise=-pull)
    np.testing.assert_allclose(m_sam(16), sam, rtol=1e-12)
    assert np.linalg.norm(m_sam(1) - sam) / np.linalg.norm(sam) > 0.02


def one_of(h: Array, center: Array, drawn: Array) -> landscapes.Landscape:
    """The parabola h_i (x - c_i)^2/2 that each chain has drawn."""
    h, center = h[drawn], center[drawn]
    return landscapes.Landscape(
        "one of two parabolas",
        1,
        lambda x: np.asarray(np.sum(h * (x - center) ** 2, axis=-1) / 2),
        lambda x: np.asarray(h * (x - center)),
        lambda x: np.asarray(h[..., None]),
    )


def test_the_mean_of_stochastic_sam_is_shifted(rng: np.random.Generator) -> None:
    h, center, eta, rho, chains = np.array([4.0, 1.0]), np.array([-1.0, 1.0]), 0.002, 0.2, 500
    minimum = float(h @ center / h.sum())
    x, total, count = np.full((chains, 1), minimum), 0.0, 0
    for t in range(4000):
        sample = one_of(h, center, rng.integers(2, size=(chains, 1)))
        x = step(dynamics.sam(eta, rho), sample, x)
        if t >= 2000:
            total, count = total + float(x.mean()), count + 1
    mean = total / count
    shift = stability.stochastic_sam_shift(4.0, 1.0, rho)
    assert minimum + shift == pytest.approx(-0.72, rel=1e-14)
    assert mean == pytest.approx(-0.72, abs=2e-3)
    excess = h.mean() / 2 * (mean - minimum) ** 2
    assert excess == pytest.approx(0.018, abs=6e-4)
    assert h.mean() / 2 * shift**2 == pytest.approx(rho**2 * 9 / (4 * 5), rel=1e-14)
    assert stability.stochastic_sam_shift(1.0, 4.0, rho) == -shift


# The manifold of minima ---

ON_THE_MANIFOLD = np.array([0.1, 0.6, 0.3, 0.25])


@pytest.mark.parametrize("make", [dynamics.sam, dynamics.monge_sam], ids=["SAM", "M-SAM"])
def test_full_batch_finds_the_least_top_eigenvalue(make: Callable[[float, float], Method]) -> None:
    path = trajectory(make(0.02, 0.2), landscapes.minima_manifold(), ON_THE_MANIFOLD, 12_000)
    np.testing.assert_allclose(path[-1, :2], (1, 0), atol=1e-6)


@pytest.mark.parametrize("make", [dynamics.sam, dynamics.monge_sam], ids=["SAM", "M-SAM"])
def test_batch_one_finds_the_least_trace(
    make: Callable[[float, float], Method], rng: np.random.Generator
) -> None:
    method = make(0.02, 0.2)
    first, second = landscapes.minima_manifold(2.0, 0.0), landscapes.minima_manifold(0.0, 2.0)
    w, mean = np.tile(ON_THE_MANIFOLD, (8, 1)), np.zeros(4)
    for t in range(8000):
        w = np.where(rng.random((8, 1)) < 0.5, step(method, first, w), step(method, second, w))
        if t >= 4000:
            mean += w.mean(axis=0) / 4000
    np.testing.assert_allclose(mean[:2], (2 / 3, 1 / 6), atol=0.05)


@pytest.mark.parametrize(
    ("method", "rest"),
    [(dynamics.gd(0.02), (0.105, 0.595)), (dynamics.unnormalized_sam(0.02, 0.2), (0.125, 0.581))],
    ids=["GD", "unnormalized SAM"],
)
def test_without_normalization_nothing_moves_along_the_manifold(
    method: Method, rest: tuple[float, float]
) -> None:
    path = trajectory(method, landscapes.minima_manifold(), ON_THE_MANIFOLD, 3000)
    np.testing.assert_allclose(path[-1, :2], rest, atol=1e-3)
    np.testing.assert_allclose(path[-1, :2], path[-1000, :2], atol=1e-12)


# Two facts that only need numbers ---


@pytest.mark.parametrize("batch", [8, 128])
def test_a_collapsed_contrastive_model_has_the_loss_of_guessing(batch: int, rng: np.random.Generator) -> None:
    image, text = rng.normal(size=(2, 16))
    logits = np.tile(image, (batch, 1)) @ np.tile(text, (batch, 1)).T / 0.07
    logits -= logits.max()
    rows = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(axis=0)) - np.diag(logits)
    assert (rows.mean() + columns.mean()) / 2 == pytest.approx(np.log(batch), abs=1e-10)
    if batch == 128:
        assert np.log(batch) == pytest.approx(4.852030, abs=5e-7)


@pytest.mark.parametrize(("k", "n", "draws"), [(10, 1000, 200_000), (1000, 50_000, 4000)])
def test_a_gaussian_rarely_leaves_the_pac_bayes_ball(
    k: int, n: int, draws: int, rng: np.random.Generator
) -> None:
    length = metric_length(rng.standard_normal((draws, k)))
    assert np.mean(length > np.sqrt(k) + np.sqrt(np.log(n))) <= n**-0.5
