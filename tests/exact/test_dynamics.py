"""Iterations against closed forms, one after the other (hence the length): cycles, basins, multipliers, thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact import dynamics, geometry, landscapes, orbits, stability
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.dynamics import Method, perturbation, step, trajectory
from tests.exact.relaxed import random_spd

laws = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
stable = st.floats(0.02, 1.95)  # eta h


def shifted(H: Array, xi: Array) -> Callable[[Array], Array]:
    return lambda w: np.asarray(w @ H + xi)


def one_dimension(h: float) -> landscapes.Landscape:
    return landscapes.quadratic(np.array([[h]]))


# One rule ---


@laws
@given(seed=seeds, d=st.integers(1, 5), log_slope=st.floats(-8, 8))
def test_every_method_is_the_seam_with_its_metric(seed: int, d: int, log_slope: float) -> None:
    rng = np.random.default_rng(seed)
    g, U, u = 10.0**log_slope * rng.normal(size=d), random_spd(rng, d), rng.random(d) + 0.1
    seam = geometry.ascent_step
    cases = {
        dynamics.sam(0.1, 0.3): seam(g, 0.3),
        dynamics.monge_sam(0.1, 0.3, alpha=0.7): seam(g, 0.3, geometry.Monge(g, 0.7)),
        dynamics.llqr_sam(0.1, 0.3, U, "dual"): seam(g, 0.3, geometry.Preconditioned(U)),
        dynamics.llqr_sam(0.1, 0.3, U): seam(g, 0.3, geometry.Preconditioned(U), "euclidean"),
        dynamics.llqr_sam(0.1, 0.3, u): seam(g, 0.3, geometry.Preconditioned(u), "euclidean"),
        dynamics.unnormalized_sam(0.1, 0.3): 0.3 * g,
        dynamics.unnormalized_llqr_sam(0.1, 0.3, U): 0.3 * U @ g,
        dynamics.gd(0.1): np.zeros(d),
        dynamics.clipped_sam(0.1, 0.3): seam(g, min(0.3, 0.3 / float(np.linalg.norm(g)))),
    }
    for method, epsilon in cases.items():
        np.testing.assert_allclose(perturbation(method, g), epsilon, rtol=1e-12, err_msg=method.name)


def test_the_dual_norm_with_alpha_is_the_metric_diagonal_plus_rank_one(rng: np.random.Generator) -> None:
    g, U = rng.normal(size=4), random_spd(rng, 4)
    method = Method(
        "preconditioned Monge", 0.1, dynamics.Steepest(0.3, geometry.Preconditioned(U), alpha=0.7), U=U
    )
    G = geometry.PositiveDefinite(np.linalg.inv(U) + 0.49 * np.outer(g, g))
    np.testing.assert_allclose(perturbation(method, g), geometry.ascent_step(g, 0.3, G), rtol=1e-10)


EVERY = [
    dynamics.gd(0.05),
    dynamics.sam(0.05, 0.1),
    dynamics.unnormalized_sam(0.05, 0.1),
    dynamics.monge_sam(0.05, 0.1),
    dynamics.clipped_sam(0.05, 0.1),
    dynamics.preconditioned_gd(0.05, np.array([0.5, 2.0])),
    dynamics.llqr_sam(0.05, 0.1, np.array([[1.0, 0.3], [0.3, 0.5]])),
    dynamics.llqr_sam(0.05, 0.1, np.array([0.5, 2.0]), norm="dual"),
    dynamics.unnormalized_llqr_sam(0.05, 0.1, np.array([0.5, 2.0])),
    dynamics.sam(0.05, 0.1, beta=0.9),
    dynamics.llqr_sam(0.05, 0.1, np.array([0.5, 2.0]), beta=0.9),
]
every_method = pytest.mark.parametrize(
    "method", EVERY, ids=lambda m: f"{m.name} {type(m.ascent).__name__} beta {m.beta}"
)


@every_method
def test_a_batch_of_starts_is_a_loop(method: Method, rng: np.random.Generator) -> None:
    banana = landscapes.banana()
    starts = rng.normal(size=(3, 2, 2))
    together = trajectory(method, banana, starts, 30)
    assert together.shape == (31, 3, 2, 2)
    for index in np.ndindex(3, 2):
        alone = trajectory(method, banana, starts[index], 30)
        np.testing.assert_allclose(together[(slice(None), *index)], alone, rtol=1e-10, atol=1e-12)


@every_method
def test_a_trajectory_is_step_after_step(method: Method) -> None:
    banana, w = landscapes.banana(), np.array([-1.5, 0.5])
    path = trajectory(method, banana, w, 20)
    np.testing.assert_array_equal(path[0], w)
    np.testing.assert_allclose(path[1], step(method, banana, w), rtol=1e-15)
    for t in range(1, 20):  # heavy ball in its one-line form, w + (T(w) - w) + beta (w - previous)
        momentum = method.beta * (path[t] - path[t - 1])
        np.testing.assert_allclose(path[t + 1], step(method, banana, path[t]) + momentum, rtol=1e-11)


@every_method
def test_a_critical_point_is_at_rest(method: Method) -> None:
    for landscape, at in ((landscapes.banana(), [1.0, 1.0]), (landscapes.banana(), [0.0, 0.0])):
        np.testing.assert_array_equal(perturbation(method, np.zeros(2)), [0, 0])
        np.testing.assert_array_equal(trajectory(method, landscape, np.array(at), 3), [at] * 4)


@every_method
def test_radius_zero_is_the_base_method(method: Method, rng: np.random.Generator) -> None:
    plain = replace(method, ascent=method.ascent and replace(method.ascent, rho=0.0))
    base = Method("base", method.eta, U=method.U, beta=method.beta)
    start = rng.normal(size=2)
    np.testing.assert_array_equal(
        trajectory(plain, landscapes.banana(), start, 20), trajectory(base, landscapes.banana(), start, 20)
    )


@every_method
def test_noise_enters_both_passes(method: Method, rng: np.random.Generator) -> None:
    """Noise in both passes is a linear term in the loss, the same one before and after the perturbation."""
    H, start, xi = random_spd(rng, 2), rng.normal(size=2), rng.normal(size=(15, 2))
    bowl = landscapes.quadratic(H)
    path = trajectory(method, bowl, start, 15, noise=xi)
    velocity, w = np.zeros(2), start
    for t in range(15):
        tilted = replace(bowl, name="tilted", slope=shifted(H, xi[t]))
        velocity = method.beta * velocity + (w - step(method, tilted, w)) / method.eta
        w = w - method.eta * velocity
        np.testing.assert_allclose(path[t + 1], w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(path[1], step(method, bowl, start, noise=xi[0]), rtol=1e-15)
    np.testing.assert_array_equal(trajectory(method, bowl, start, 15, noise=lambda t, shape: xi[t]), path)


def test_divergence_is_a_result() -> None:
    path = trajectory(dynamics.sam(1.0, 0.1), landscapes.bowl(np.array([100.0])), np.array([1.0]), 500)
    assert np.isfinite(path[50]).all()
    assert not np.isfinite(path[-1]).any()


def test_a_frozen_preconditioner_that_has_caught_up_is_newtons_method() -> None:
    H = np.array([[3.0, 1.0], [1.0, 2.0]])
    path = trajectory(
        dynamics.preconditioned_gd(1.0, np.linalg.inv(H)), landscapes.quadratic(H), np.array([5.0, -7.0]), 1
    )
    np.testing.assert_allclose(path[1], [0, 0], atol=1e-14)


# Cycles ---


@laws
@given(a=st.floats(0.1, 1.9), h=st.floats(0.1, 20), rho=st.floats(0.01, 2), start=st.floats(0.3, 3))
def test_sam_ends_in_the_cycle_of_the_formula(a: float, h: float, rho: float, start: float) -> None:
    cycle = orbits.find_cycle(dynamics.sam(a / h, rho), one_dimension(h), np.array([start]), steps=500)
    assert len(cycle) == 2
    np.testing.assert_allclose(cycle[0], -cycle[1], rtol=1e-9)
    assert abs(cycle[0, 0]) == pytest.approx(stability.sam_cycle_amplitude(h, a / h, rho), rel=1e-9)


@laws
@given(a=st.floats(0.01, 0.99), beta=st.floats(0.0, 0.99), rho=st.floats(0.01, 2))
def test_the_cycle_with_momentum_is_antipodal_and_locally_stable(a: float, beta: float, rho: float) -> None:
    eta = a * stability.step_limit(1.0, beta)
    method, parabola = dynamics.sam(eta, rho, beta), one_dimension(1.0)
    x = np.array([stability.sam_cycle_amplitude(1.0, eta, rho, beta)])
    np.testing.assert_allclose(step(method, parabola, x) + beta * (x - -x), -x, rtol=1e-11)
    assert abs(orbits.multipliers(method, parabola, x, difference=1e-5 * x[0])[0]) < 1


@pytest.mark.parametrize(("eta", "beta"), [(0.5, 0.0), (1.5, 0.5), (2.0, 0.5), (3.0, 0.9)])
def test_sam_with_momentum_ends_in_its_cycle(eta: float, beta: float) -> None:
    cycle = orbits.find_cycle(dynamics.sam(eta, 1.0, beta), one_dimension(1.0), np.array([0.7]))
    assert len(cycle) == 2
    amplitude = stability.sam_cycle_amplitude(1.0, eta, 1.0, beta)
    assert np.abs(cycle).max() == pytest.approx(amplitude, rel=1e-9)


def test_with_momentum_other_cycles_may_catch_the_orbit() -> None:
    cycle = orbits.find_cycle(dynamics.sam(0.5, 1.0, 0.5), one_dimension(1.0), np.array([0.7]))
    np.testing.assert_allclose(sorted(cycle[:, 0]), [-0.6, -0.2, 0.2, 0.6], rtol=1e-9)
    assert stability.sam_cycle_amplitude(1.0, 0.5, 1.0, 0.5) == pytest.approx(0.2)


@laws
@given(a=stable, h=st.floats(0.1, 20), rho=st.floats(0.01, 3), alpha=st.floats(0.0, 3))
def test_the_monge_cycle_is_antipodal_and_stable_where_the_formula_says(
    a: float, h: float, rho: float, alpha: float
) -> None:
    eta = a / h
    method, parabola = dynamics.monge_sam(eta, rho, alpha), one_dimension(h)
    amplitude = stability.monge_cycle_amplitude(h, eta, rho, alpha)
    np.testing.assert_allclose(step(method, parabola, np.array([amplitude])), [-amplitude], rtol=1e-11)
    along = stability.monge_cycle_multiplier(h, eta, rho, alpha)
    numeric = orbits.multipliers(method, parabola, np.array([amplitude]), difference=1e-5 * amplitude)
    assert numeric[0].real == pytest.approx(along, abs=1e-6)
    limit = stability.monge_cycle_radius_limit(h, eta, alpha)
    assert (along < 1) == (rho < limit) or rho == pytest.approx(limit, rel=1e-9)
    if along < 0.95:
        cycle = orbits.find_cycle(method, parabola, np.array([amplitude * (1 + 1e-3)]), steps=1000)
        assert np.abs(cycle).max() == pytest.approx(amplitude, rel=1e-8)


def test_beyond_its_radius_limit_monge_wanders_where_sam_settles() -> None:
    assert stability.monge_cycle_radius_limit(1.0, 0.4) == pytest.approx(2.667, abs=5e-4)
    assert stability.monge_cycle_multiplier(1.0, 0.4, 10.0) == pytest.approx(1.675, abs=5e-4)
    start = np.array([1.1 * stability.monge_cycle_amplitude(1.0, 0.4, 10.0)])
    with pytest.raises(RuntimeError, match="no cycle of period up to longest=8"):
        orbits.find_cycle(dynamics.monge_sam(0.4, 10.0), one_dimension(1.0), start)
    assert len(orbits.find_cycle(dynamics.sam(0.4, 10.0), one_dimension(1.0), start)) == 2
    wandering = trajectory(dynamics.monge_sam(0.4, 10.0), one_dimension(1.0), start, 3000)[-1000:]
    assert np.ptp(np.abs(wandering)) > 1
    assert np.abs(wandering).max() < 10


@pytest.mark.parametrize("alpha_h_c", [1e-9, 1e-4, 1.0, 1e4])
def test_the_monge_amplitude_keeps_its_digits(alpha_h_c: float) -> None:
    h, eta = 4.0, 0.1
    rho = alpha_h_c / h * (2 - eta * h) / (eta * h)
    a = stability.monge_cycle_amplitude(h, eta, rho)
    assert a * np.hypot(1, h * a) == pytest.approx(stability.sam_cycle_amplitude(h, eta, rho), rel=1e-15)


@pytest.mark.parametrize("make", [dynamics.sam, dynamics.monge_sam], ids=["SAM", "M-SAM"])
@laws
@given(a_k=stable, ratio=st.floats(0.1, 3))
def test_the_transverse_multiplier(make: Callable[[float, float], Method], a_k: float, ratio: float) -> None:
    h_k, h_j, eta, rho = 1.0, ratio, a_k, 0.1
    amplitude = (stability.sam_cycle_amplitude if make is dynamics.sam else stability.monge_cycle_amplitude)(
        h_k, eta, rho
    )
    J = orbits.step_jacobian(
        make(eta, rho),
        landscapes.quadratic(np.diag([h_k, h_j])),
        np.array([amplitude, 0.0]),
        1e-6 * amplitude,
    )
    multiplier = stability.cycle_multipliers(h_j, h_k, eta)
    assert J[1, 1] == pytest.approx(multiplier, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(J[[0, 1], [1, 0]], 0, atol=1e-7)
    assert (abs(multiplier) < 1) == (h_j < h_k) or ratio == pytest.approx(1) or eta * h_j > 2


def test_only_the_top_directions_cycle_survives(rng: np.random.Generator) -> None:
    h = np.array([4.0, 2.0, 1.0, 0.5])
    for make, amplitude in (
        (dynamics.sam, stability.sam_cycle_amplitude),
        (dynamics.monge_sam, stability.monge_cycle_amplitude),
    ):
        cycle = orbits.find_cycle(make(0.1, 0.1), landscapes.bowl(h), rng.normal(size=4))
        np.testing.assert_allclose(np.abs(cycle), [[amplitude(4.0, 0.1, 0.1), 0, 0, 0]] * 2, atol=1e-12)


def test_the_loss_floors() -> None:
    h, eta, rho = 4.0, 0.1, 0.1
    bowl = landscapes.bowl(np.array([4.0, 2.0]))
    cycle = orbits.find_cycle(dynamics.sam(eta, rho), bowl, np.array([1.0, 0.5]))
    np.testing.assert_allclose(bowl.value(cycle), stability.sam_loss_floor(h, eta, rho), rtol=1e-9)
    neighbors = cycle + perturbation(dynamics.sam(eta, rho), bowl.gradient(cycle))
    np.testing.assert_allclose(bowl.value(neighbors), stability.sam_neighbor_floor(h, eta, rho), rtol=1e-9)
    assert stability.sam_loss_floor(h, eta, rho) == pytest.approx(
        eta**2 * rho**2 * h**3 / (2 * (2 - eta * h) ** 2), rel=1e-15
    )
    assert stability.sam_neighbor_floor(h, 1e-9, rho) == pytest.approx(rho**2 * h / 2, rel=1e-8)


@pytest.mark.parametrize("norm", ["euclidean", "dual"])
def test_the_cycle_under_a_preconditioner(norm: str) -> None:
    for U, h, eta, rho in ((4.0, 3.0, 0.05, 0.4), (0.2, 3.0, 1.5, 0.1), (9.0, 0.2, 0.9, 2.0)):
        method = dynamics.llqr_sam(eta, rho, np.array([U]), norm)
        cycle = orbits.find_cycle(method, one_dimension(h), np.array([1.0]))
        length = np.sqrt(U) if norm == "dual" else 1.0
        amplitude = length * stability.sam_cycle_amplitude(U * h, eta, rho)
        assert np.abs(cycle).max() == pytest.approx(amplitude, rel=1e-9)


@pytest.mark.parametrize("make", [dynamics.sam, dynamics.monge_sam], ids=["SAM", "M-SAM"])
def test_the_drift_along_a_valley(make: Callable[[float, float], Method]) -> None:
    valley, eta, u = landscapes.curved_valley(), 0.1, 0.7
    h, h_slope = 1 + u**2, 2 * u
    errors = []
    for rho in (1e-1, 1e-2, 1e-3):
        # bring the swing to its cycle at u, then measure two steps
        y = stability.sam_cycle_amplitude(h, eta, rho)
        for _ in range(300):
            y = abs(step(make(eta, rho), valley, np.array([u, y]))[1])
        path = trajectory(make(eta, rho), valley, np.array([u, y]), 2)
        drift = stability.valley_drift(h, h_slope, eta, rho)
        errors.append(abs((path[2, 0] - path[0, 0]) / (2 * drift) - 1))
    assert errors[-1] < 1e-5
    assert errors[0] / errors[1] > 50
    still = trajectory(dynamics.unnormalized_sam(eta, 0.1), valley, np.array([u, 0.01]), 3000)[:, 0]
    assert still[-1] == still[-1000]


# Basins ---


@pytest.mark.parametrize(("h", "rho"), [(2.0, 1.0), (0.5, 0.1), (20.0, 0.5), (1.0, 4.0)])
def test_the_basin_of_a_maximum(h: float, rho: float) -> None:
    eta = 0.02 / h
    hilltop = landscapes.hilltop(h)
    radius = orbits.find_basin_radius(dynamics.sam(eta, rho), hilltop, high=3 * rho)
    assert radius == pytest.approx(stability.sam_basin_radius(h, rho), rel=1e-9)
    for alpha in (0.5, 1.0):
        radius = orbits.find_basin_radius(dynamics.monge_sam(eta, rho, alpha), hilltop, high=3 * rho)
        assert radius == pytest.approx(stability.monge_basin_radius(h, rho, alpha), rel=1e-9)


def test_a_basin_is_found_where_the_orbits_that_leave_overflow() -> None:
    radius = orbits.find_basin_radius(dynamics.sam(0.001, 0.3), landscapes.hilltop(200.0), high=2.0)
    assert radius == pytest.approx(0.3, rel=1e-9)


def test_inside_the_basin_the_motion_stays_in_a_band() -> None:
    starts = np.linspace(0.05, 0.999, 20)[:, None]
    path = trajectory(dynamics.sam(0.01, 1.0), landscapes.hilltop(2.0), starts, 3000)
    assert np.abs(path[-1000:]).max() <= 0.01 * 2 * 1.0 * (1 + 1e-12)
    assert np.ptp(path[-1000:]) > 0.01


@laws
@given(h=st.floats(0.1, 50), rho=st.floats(1e-4, 10), alpha=st.floats(0.0, 5))
def test_the_monge_basin_and_slope_solve_their_equations(h: float, rho: float, alpha: float) -> None:
    r = stability.monge_basin_radius(h, rho, alpha)
    assert r * np.hypot(1, alpha * h * r) == pytest.approx(rho, rel=1e-14)
    s = stability.pullback_slope(h, rho, alpha)
    assert s * np.hypot(1, alpha * s) == pytest.approx(rho * h, rel=1e-14)
    assert r <= stability.sam_basin_radius(h, rho) == pytest.approx(rho, rel=1e-15)
    assert stability.monge_basin_radius(-h, rho, alpha) == r


@pytest.mark.parametrize(
    ("rho_h", "ratio"),
    [
        (0.05, 0.999),
        (0.25, 0.972),
        (0.5, 0.910),
        (1, 0.786),
        (2.5, 0.573),
        (5, 0.425),
        (10, 0.308423),
        (100, 0.1),
    ],
)
def test_the_ratio_of_the_basins(rho_h: float, ratio: float) -> None:
    assert stability.monge_basin_radius(rho_h, 1.0) == pytest.approx(ratio, abs=5e-7 if rho_h == 10 else 5e-4)


@pytest.mark.parametrize(
    ("rho", "share_sam", "share_monge"),
    [(0.1, 0.96, 0.99), (0.3, 0.59, 0.95), (0.5, 0.12, 0.90), (0.8, 0.00, 0.82)],
)
def test_leaving_a_saddle_of_curvature_twenty(rho: float, share_sam: float, share_monge: float) -> None:
    well, rng = landscapes.double_well_saddle(20.0), np.random.default_rng(8)
    away = rng.choice([-1, 1], 300) * rng.uniform(0.02, 0.5, 300)
    starts = np.stack([rng.uniform(-1, 1, 300), away], axis=-1)
    for make, share in ((dynamics.sam, share_sam), (dynamics.monge_sam, share_monge)):
        end = trajectory(make(0.0025, rho), well, starts, 2000)[-1]
        # two draws of 300 starts may differ by three standard errors of their difference
        error = 3 * np.sqrt(2 * max(share * (1 - share), 0.01) / 300)
        assert np.mean(np.abs(end[:, 1]) > 0.5) == pytest.approx(share, abs=error)


# Thresholds ---


@laws
@given(eta=st.floats(0.01, 1), rho=st.floats(0.0, 3), beta=st.floats(0.0, 0.95))
def test_the_contrast_limit_is_where_stability_is_lost(eta: float, rho: float, beta: float) -> None:
    method = dynamics.unnormalized_sam(eta, rho, beta)

    def settles(chi: float) -> bool:
        return bool(abs(orbits.multipliers(method, one_dimension(chi), np.zeros(1))[0]) < 1)

    limit = stability.contrast_limit(eta, rho, beta)
    assert orbits.bisect(settles, 1e-3 * limit, 3 * limit) == pytest.approx(limit, rel=1e-6)
    assert limit <= stability.step_limit(eta, beta)  # 2 (1 + beta)/eta, at rho = 0
    assert stability.contrast_limit(eta, 0.0, beta) == stability.step_limit(eta, beta)


@laws
@given(h=st.floats(0.1, 50), beta=st.floats(0.0, 0.95))
def test_the_step_limit(h: float, beta: float) -> None:
    def settles(eta: float) -> bool:
        return bool(abs(orbits.multipliers(dynamics.gd(eta, beta), one_dimension(h), np.zeros(1))[0]) < 1)

    limit = stability.step_limit(h, beta)
    assert orbits.bisect(settles, 1e-3 * limit, 3 * limit) == pytest.approx(limit, rel=1e-6)


@laws
@given(
    h=st.floats(-5, 5),
    hbar=st.floats(0.0, 5),
    mu=st.floats(0.01, 1),
    eta=st.floats(0.01, 1),
    rho=st.floats(0, 2),
)
def test_the_pothole_multiplier_is_one_step(h: float, hbar: float, mu: float, eta: float, rho: float) -> None:
    method = dynamics.unnormalized_llqr_sam(eta, rho, np.array([1 / (hbar + mu)]))
    moved = step(method, one_dimension(h), np.array([1.0]))[0]
    assert moved == pytest.approx(stability.pothole_multiplier(h, hbar, mu, eta, rho), rel=1e-11, abs=1e-11)
    chi = stability.contrast(h, hbar, mu)
    assert stability.unnormalized_multiplier(chi, eta, rho) == pytest.approx(moved, rel=1e-11, abs=1e-11)


def test_the_matrix_form_needs_no_common_eigenvectors(rng: np.random.Generator) -> None:
    U, H, eta, rho = random_spd(rng, 4), random_spd(rng, 4), 0.3, 0.2
    method = dynamics.unnormalized_llqr_sam(eta, rho, U)
    eigenvalues = np.sort(orbits.multipliers(method, landscapes.quadratic(H), np.zeros(4)).real)
    h, V = np.linalg.eigh(U)
    root = V @ np.diag(np.sqrt(h)) @ V.T
    chis = np.linalg.eigvalsh(root @ H @ root)
    expected = [stability.unnormalized_multiplier(float(chi), eta, rho) for chi in chis]
    np.testing.assert_allclose(eigenvalues, np.sort(expected), rtol=1e-8)


@pytest.mark.parametrize(("h", "eta"), [(-2.0, 0.01), (-0.5, 0.3)])
def test_the_unnormalized_rule_is_drawn_to_a_maximum_between_two_radii(h: float, eta: float) -> None:
    hilltop = one_dimension(h)

    def leaves(rho: float) -> bool:
        return bool(abs(step(dynamics.unnormalized_sam(eta, rho), hilltop, np.ones(1))[0]) > 1)

    low, high = stability.unnormalized_saddle_threshold(h), stability.unnormalized_saddle_limit(h, eta)
    assert orbits.bisect(leaves, 0.0, (low + high) / 2) == pytest.approx(low, rel=1e-9)
    assert orbits.bisect(leaves, 2 * high, (low + high) / 2) == pytest.approx(high, rel=1e-9)


def test_thresholds_of_the_four_ablations() -> None:
    """U in the step, in the perturbation, in both, in neither: eta 0.05, rho 0.4, U = 4."""
    U, one, eta, rho = np.array([4.0]), np.array([1.0]), 0.05, 0.4
    variants = {
        "neither": (Method("", eta, dynamics.Unnormalized(rho)), 8.828),
        "step only": (Method("", eta, dynamics.Unnormalized(rho), U=U), 3.904),
        "perturbation only": (Method("", eta, dynamics.Unnormalized(rho, geometry.Preconditioned(U))), 4.697),
        "both": (Method("", eta, dynamics.Unnormalized(rho, geometry.Preconditioned(U)), U=U), 2.207),
    }
    for name, (method, limit) in variants.items():

        def settles(h: float, method: Method = method) -> bool:
            return bool(abs(step(method, one_dimension(h), one)[0]) < 1)

        assert orbits.bisect(settles, 0.1, 100.0) == pytest.approx(limit, abs=5e-4), name
    both = dynamics.unnormalized_llqr_sam(eta, rho, U)
    assert perturbation(both, one) == perturbation(variants["both"][0], one)


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        (dynamics.gd(0.05), 40.0),
        (dynamics.preconditioned_gd(0.05, np.array([4.0])), 10.0),
        (dynamics.unnormalized_sam(0.05, 0.4), 8.827822),
        (dynamics.unnormalized_llqr_sam(0.05, 0.4, np.array([4.0])), 2.206956),
    ],
    ids=["GD", "LLQR", "SAM", "LLQR+SAM"],
)
def test_the_bottom_of_a_smooth_hole_turns_unstable_at_the_limit(method: Method, limit: float) -> None:
    def settles(h: float) -> bool:
        hole = landscapes.pothole((0.2,), hole=h - 0.2, width=0.05)
        return bool(abs(orbits.multipliers(method, hole, np.zeros(1), difference=1e-7)[0]) < 1)

    assert orbits.bisect(settles, 0.3, 100.0) == pytest.approx(limit, rel=1e-6)


def test_the_radius_that_averages_the_pits_away() -> None:
    force, slope = 20 / (2 * np.pi), 0.1 * 4
    assert stability.smoothing_radius(1.0, 20, force, slope) == pytest.approx(1.450, abs=5e-4)
    assert stability.smoothing_radius(1.0, 40, force, slope) == pytest.approx(1.450 * np.sqrt(2), abs=1e-3)


# What the finders do when there is nothing to find ---


def test_finders_say_when_there_is_nothing_to_find() -> None:
    hilltop = landscapes.hilltop(2.0)
    with pytest.raises(RuntimeError, match=r"SAM stays from high=0\.5; raise high"):
        orbits.find_basin_radius(dynamics.sam(0.01, 1.0), hilltop, high=0.5)
    with pytest.raises(RuntimeError, match="GD leaves the origin"):
        orbits.find_basin_radius(dynamics.gd(0.01), hilltop, high=0.5)
    with pytest.raises(ValueError, match="low=2 is not allowed: the property must hold there"):
        orbits.bisect(lambda x: x < 1, 2.0, 3.0)
    with pytest.raises(ValueError, match=r"high=0\.5 is not allowed: the property must fail there"):
        orbits.bisect(lambda x: x < 1, 0.0, 0.5)


def test_a_fixed_point_is_a_cycle_of_one() -> None:
    cycle = orbits.find_cycle(dynamics.gd(0.1), landscapes.banana(), np.array([1.5, 0.5]))
    assert cycle.shape == (1, 2)
    assert cycle[0].prod() == pytest.approx(1, rel=1e-12)
