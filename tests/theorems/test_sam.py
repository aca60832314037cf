"""Part 2, SAM: the theorems of the chapters on the worst neighbor and on the cycle, each with its mutation.

Letters as in the book: g and H the gradient and Hessian of L, h its eigenvalues, eta the learning rate, beta
the momentum, rho the radius, epsilon the perturbation, G a metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, geometry, landscapes, orbits, stability, trust_region
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation, require


@dataclass(frozen=True)
class _Wavy:
    """L(w) = w^T A w / 2 + sum_k c_k sin(b_k^T w): smooth, not quadratic, all derivatives known."""

    A: Array
    B: Array
    c: Array

    @classmethod
    def random(cls, rng: np.random.Generator, d: int) -> _Wavy:
        root = rng.standard_normal((d, d))
        return cls(root @ root.T / d, rng.standard_normal((d, d)), rng.standard_normal(d))

    def value(self, w: Array) -> float:
        return float(w @ self.A @ w / 2 + self.c @ np.sin(self.B @ w))

    def gradient(self, w: Array) -> Array:
        return self.A @ w + self.B.T @ (self.c * np.cos(self.B @ w))

    def hessian(self, w: Array) -> Array:
        return self.A - (self.B.T * (self.c * np.sin(self.B @ w))) @ self.B


def _random_spd(rng: np.random.Generator, d: int) -> Array:
    root = rng.standard_normal((d, d))
    return root @ root.T / d + 0.2 * np.eye(d)


def _projector(g: Array) -> Array:
    return np.eye(g.size) - np.outer(g, g) / (g @ g)


def _numerical_gradient(function: Callable[[Array], float], w: Array, step: float) -> Array:
    """Five-point differences, exact for polynomials of degree four."""
    weights = ((-2, 1), (-1, -8), (1, 8), (2, -1))
    axes = step * np.eye(w.size)
    return np.array([sum(c * function(w + k * axis) for k, c in weights) / (12 * step) for axis in axes])


def _worst_in_ball(g: Array, H: Array, rho: float, G: Array) -> Array:
    """The maximizer of g^T e + e^T H e / 2 over e^T G e <= rho^2: in z = G^(1/2) e the ball is round."""
    values, vectors = np.linalg.eigh(G)
    to_e = (vectors / np.sqrt(values)) @ vectors.T  # G^(-1/2)
    return np.asarray(to_e @ trust_region.trust_region_step(to_e @ g, to_e @ H @ to_e, rho))


def _first_order(g: Array, H: Array, rho: float, G: Array) -> Array:
    return geometry.ascent_step(g, rho, geometry.PositiveDefinite(G))


# The worst neighbor -----------------------------------------------------------------------------------------


@mutation(
    "clipping each entry of the gradient changes nothing",
    clip=lambda g, limit: np.clip(g, -limit, limit),
)
@mutation("a shift of the gradient changes nothing", moved=lambda g, scale: g + scale)
def test_prop_ascent_scale_free(
    clip: Callable[[Array, float], Array] = lambda g, limit: g * min(1.0, limit / float(np.linalg.norm(g))),
    moved: Callable[[Array, float], Array] = lambda g, scale: scale * g,
) -> None:
    """The loss's scale and norm clipping leave SAM's epsilon alone; unnormalized SAM follows both."""
    rng = np.random.default_rng(201)
    for _ in range(20):
        d, rho = int(rng.integers(2, 9)), 0.1
        g, metric = 3.0 * rng.standard_normal(d), geometry.PositiveDefinite(_random_spd(rng, d))
        limit = 0.3 * float(np.linalg.norm(g))
        for ruler in (geometry.Euclidean(), metric):
            epsilon = geometry.ascent_step(g, rho, ruler)
            for scale in (1e-4, 1e-2, 1.0, 1e2, 1e5):
                scaled = geometry.ascent_step(moved(g, scale), rho, ruler)
                np.testing.assert_allclose(scaled, epsilon, rtol=1e-14, atol=1e-14)
            np.testing.assert_allclose(
                geometry.ascent_step(clip(g, limit), rho, ruler), epsilon, rtol=1e-14, atol=1e-14
            )
        unnormalized = dynamics.unnormalized_sam(eta=0.1, rho=rho)
        np.testing.assert_allclose(
            dynamics.perturbation(unnormalized, clip(g, limit)),
            0.3 * dynamics.perturbation(unnormalized, g),
            rtol=1e-12,
        )


@mutation("the first-order neighbor stands in for the worst one", maximizer=_first_order)
def test_thm_sam_danskin(maximizer: Callable[..., Array] = _worst_in_ball) -> None:
    """The gradient at the worst neighbor is the gradient of the worst loss, for any fixed metric."""
    rng = np.random.default_rng(202)
    for _ in range(8):
        d, rho = int(rng.integers(2, 6)), float(rng.uniform(0.3, 0.8))
        H, G, w = _random_spd(rng, d), _random_spd(rng, d), rng.standard_normal(d)

        def worst_loss(x: Array, H: Array = H, G: Array = G, rho: float = rho) -> float:
            neighbor = x + _worst_in_ball(H @ x, H, rho, G)
            return float(neighbor @ H @ neighbor / 2)

        claimed = H @ (w + maximizer(H @ w, H, rho, G))
        measured = _numerical_gradient(worst_loss, w, 1e-3)
        np.testing.assert_allclose(claimed, measured, rtol=0, atol=1e-8 * float(np.linalg.norm(measured)))


@mutation("D = rho H / |g|, the projector forgotten", jacobian=lambda g, H, rho: rho * H / np.linalg.norm(g))
def test_thm_sam_surrogate_gradient(
    jacobian: Callable[..., Array] = lambda g, H, rho: rho / np.linalg.norm(g) * _projector(g) @ H,
) -> None:
    """(I + D)^T grad L(w + epsilon) is the derivative of w -> L(w + epsilon(w)) on ten smooth losses."""
    rng = np.random.default_rng(203)
    rho = 0.1
    for _ in range(10):
        d = int(rng.integers(2, 6))
        loss, w = _Wavy.random(rng, d), rng.standard_normal(d)

        def surrogate(x: Array, loss: _Wavy = loss) -> float:
            return loss.value(x + geometry.ascent_step(loss.gradient(x), rho))

        g = loss.gradient(w)
        at_neighbor = loss.gradient(w + geometry.ascent_step(g, rho))
        D = jacobian(g, loss.hessian(w), rho)
        claimed = at_neighbor + D.T @ at_neighbor
        measured = _numerical_gradient(surrogate, w, 2e-4)
        np.testing.assert_allclose(claimed, measured, rtol=0, atol=1e-8 * float(np.linalg.norm(measured)))


@mutation("the projector is replaced by the identity", projector=lambda g: np.eye(g.size))
def test_thm_sam_dropped_term(projector: Callable[[Array], Array] = _projector) -> None:
    """The dropped piece over rho^2 tends to H P H g/|g|^2, tenfold closer with every decade of rho."""
    rng = np.random.default_rng(204)
    loss, w = _Wavy.random(rng, 4), rng.standard_normal(4)
    g, H = loss.gradient(w), loss.hessian(w)
    s = np.linalg.norm(g)
    leading = H @ _projector(g) @ H @ g / s**2
    sizes, distances = [], []
    for rho in (1e-1, 1e-2, 1e-3):
        D = rho / s * projector(g) @ H
        dropped = D.T @ loss.gradient(w + rho * g / s) / rho**2
        sizes.append(np.linalg.norm(dropped))
        distances.append(np.linalg.norm(dropped - leading))
    assert abs(sizes[2] / sizes[1] - 1) <= 0.02
    assert distances[2] <= 0.005 * np.linalg.norm(leading)
    assert distances[1] / distances[2] == pytest.approx(10, abs=0.5)


@mutation("the gap is of second order", order=2)
def test_thm_sam_worst_point_gap(order: int = 3) -> None:
    """Worst loss minus the loss at SAM's neighbor is rho^3 |P H g/|g||^2 / (2 |g|) on six quadratics."""
    rng = np.random.default_rng(205)
    for _ in range(6):
        d = int(rng.integers(2, 6))
        H, w = _random_spd(rng, d), rng.standard_normal(d)
        g = H @ w
        s = float(np.linalg.norm(g))
        rho = 0.01 * s
        furthest, first = w + trust_region.trust_region_step(g, H, rho), w + geometry.ascent_step(g, rho)
        # the two values as one product: their plain difference would lose half of the digits
        gap = float((furthest - first) @ H @ (furthest + first) / 2)
        tangential = _projector(g) @ H @ g / s
        assert gap / (rho**order * (tangential @ tangential) / (2 * s)) == pytest.approx(1, abs=0.1)


# The cycle --------------------------------------------------------------------------------------------------

CURVATURES = np.array([4.0, 2.0, 1.0, 0.5])
RHO = 0.1


@mutation("amplitude eta rho h / 2", amplitude=lambda h, eta, rho: eta * rho * h / 2)
def test_thm_sam_two_cycle(amplitude: Callable[..., float] = stability.sam_cycle_amplitude) -> None:
    """Every eigenvector carries one antipodal cycle, nothing else does; on a line every start ends there."""
    bowl = landscapes.bowl(CURVATURES)
    rng = np.random.default_rng(206)
    for eta in (0.01, 0.1, 0.2, 0.3, 0.4):
        method = dynamics.sam(eta, RHO)
        for axis, h in zip(np.eye(4), CURVATURES, strict=True):
            x = amplitude(h, eta, RHO) * axis
            np.testing.assert_allclose(
                dynamics.step(method, bowl, x), -x, rtol=0, atol=1e-13 * float(np.linalg.norm(x))
            )
        end = dynamics.trajectory(method, bowl, rng.standard_normal((5, 4)), 6000)[-1]
        expected = amplitude(CURVATURES[0], eta, RHO) * np.outer(np.sign(end[:, 0]), np.eye(4)[0])
        np.testing.assert_allclose(end, expected, rtol=0, atol=1e-9)

    starts = np.concatenate([-np.geomspace(1e-6, 1e3, 40), np.geomspace(1e-6, 1e3, 40)])[:, None]
    for eta in (0.01, 0.1, 0.24, 0.26, 0.49):
        path = dynamics.trajectory(dynamics.sam(eta, RHO), landscapes.bowl(CURVATURES[:1]), starts, 2500)
        np.testing.assert_allclose(np.abs(path[-1]), amplitude(CURVATURES[0], eta, RHO), rtol=1e-9)

    plane, eta = landscapes.bowl(CURVATURES[:2]), 0.1
    angles, radii = np.meshgrid(np.linspace(0.05, np.pi / 2 - 0.05, 60), np.geomspace(1e-3, 1.0, 300))
    grid = radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    residual = np.linalg.norm(dynamics.step(dynamics.sam(eta, RHO), plane, grid) + grid, axis=-1) / radii
    assert residual.min() >= 1e-3


@mutation(
    "factor 2 in place of 2 - eta h_k",
    multiplier=lambda h_j, h_k, eta: 1 - eta * h_j - 2 * (h_j / h_k) ** 2,
)
def test_thm_sam_cycle_stability(multiplier: Callable[..., float] = stability.cycle_multipliers) -> None:
    """The transverse multiplier against central differences, and its verdict: stable iff h_j < h_k."""
    for h_k, h_j, eta in [
        (4, 2, 0.1),
        (2, 4, 0.1),
        (4, 3.9, 0.3),
        (3.9, 4, 0.3),
        (1, 0.1, 1.5),
        (4, 0.5, 0.4),
    ]:
        bowl, a = (
            landscapes.bowl(np.array([h_k, h_j], dtype=float)),
            stability.sam_cycle_amplitude(h_k, eta, RHO),
        )
        measured = orbits.step_jacobian(dynamics.sam(eta, RHO), bowl, np.array([a, 0.0]), difference=1e-5 * a)
        claimed = multiplier(h_j, h_k, eta)
        np.testing.assert_allclose(measured, np.diag([1 - eta * h_k, claimed]), rtol=0, atol=1e-6)
        assert (abs(claimed) < 1) == (h_j < h_k)
    assert multiplier(4, 4, 0.1) == pytest.approx(-1, abs=1e-15)
    assert multiplier(2, 4, 0.1) == pytest.approx(0.4, abs=1e-15)


@mutation("floor rho^2 h / 2", floor=lambda h, eta, rho: rho**2 * h / 2)
@mutation("the neighbor is as low as the cycle", at_neighbor=stability.sam_loss_floor)
def test_cor_sam_loss_floor(
    floor: Callable[..., float] = stability.sam_loss_floor,
    at_neighbor: Callable[..., float] = stability.sam_neighbor_floor,
) -> None:
    """The loss on the cycle, the loss at the neighbor, and how each behaves as eta falls."""
    h, eta = 4.0, 0.1
    bowl, method = landscapes.bowl(np.array([h, 1.0])), dynamics.sam(eta, RHO)
    w = dynamics.trajectory(method, bowl, np.array([1.0, 0.7]), 2000)[-1]
    assert bowl.value(w) == pytest.approx(floor(h, eta, RHO), rel=1e-9)
    neighbor = w + dynamics.perturbation(method, bowl.gradient(w))
    assert bowl.value(neighbor) == pytest.approx(at_neighbor(h, eta, RHO), rel=1e-9)
    assert at_neighbor(h, 1e-9, RHO) == pytest.approx(RHO**2 * h / 2, rel=1e-8)
    ratio = floor(h, eta, RHO) / floor(h, eta / 10, RHO)
    assert ratio == pytest.approx(100 * ((2 - eta * h / 10) / (2 - eta * h)) ** 2, abs=1e-6)


def _heavy_ball_ends(eta_h: float, beta: float) -> Array:
    """x_T, x_{T-1}, x_{T-2} of SAM with momentum on h = 2, from 60 starts at rest: shape (3, 60)."""
    starts = np.geomspace(1e-3, 3.0, 60)[:, None]
    path = dynamics.trajectory(
        dynamics.sam(eta_h / 2, RHO, beta=beta), landscapes.bowl(np.array([2.0])), starts, 3000
    )
    return path[:-4:-1, :, 0]


@mutation(
    "the amplitude without momentum", amplitude=lambda h, eta, rho, beta: eta * rho * h / abs(2 - eta * h)
)
def test_thm_sam_cycle_momentum(amplitude: Callable[..., float] = stability.sam_cycle_amplitude) -> None:
    """Every run that ends antipodal has the one amplitude, some runs do, also beyond eta h = 2."""
    h = 2.0
    for eta_h, beta in [(0.4, 0.5), (0.4, 0.9), (1.0, 0.3), (1.0, 0.9), (2.4, 0.5), (3.0, 0.9)]:
        last, previous, _ = _heavy_ball_ends(eta_h, beta)
        antipodal = np.abs(last + previous) <= 1e-9 * np.abs(last)
        require(antipodal.any(), "some runs swing")
        a = amplitude(h, eta_h / h, RHO, beta)
        np.testing.assert_allclose(np.abs(last[antipodal]), a, rtol=1e-9)
        method = dynamics.sam(eta_h / h, RHO, beta=beta)
        deviations = orbits.multipliers(
            method, landscapes.bowl(np.array([h])), np.array([a]), difference=1e-5 * a
        )
        assert abs(deviations[0]) < 1


def _four_cycle(eta_h: float, beta: float) -> tuple[float, float]:
    scale = eta_h * RHO / ((1 - beta) ** 2 + (1 + beta - eta_h) ** 2)
    return scale * (2 - eta_h), scale * (2 * beta - eta_h)


def _two_cycle(eta_h: float, beta: float) -> tuple[float, float]:
    amplitude = stability.sam_cycle_amplitude(2.0, eta_h / 2, RHO, beta)
    return amplitude, -amplitude


@mutation("every start ends on the two-cycle", cycle=_two_cycle)
def test_cex_sam_momentum_four_cycle(
    cycle: Callable[[float, float], tuple[float, float]] = _four_cycle,
) -> None:
    """A second cycle, of period four, for eta h < 2 beta and only there, with five times the loss."""
    for eta_h, beta in [(0.4, 0.3), (0.4, 0.5), (0.4, 0.9), (0.8, 0.5), (1.0, 0.9)]:
        last, _, second_last = _heavy_ball_ends(eta_h, beta)
        period_four = np.abs(last + second_last) <= 1e-9
        require(period_four.any(), "some cycles have four points")
        b_1, b_2 = cycle(eta_h, beta)
        for size in np.abs(last[period_four]):
            assert size == pytest.approx(b_1, rel=1e-9) or size == pytest.approx(b_2, rel=1e-9)
    for eta_h, beta in [(0.8, 0.3), (1.5, 0.7), (2.4, 0.9)]:
        last, _, second_last = _heavy_ball_ends(eta_h, beta)
        assert not np.any(np.abs(last + second_last) <= 1e-9)
    b_1, b_2 = cycle(0.5, 0.5)
    assert (b_1, b_2) == pytest.approx((0.06, 0.02), rel=1e-12)
    assert (b_1**2 + b_2**2) / 2 == pytest.approx(5 * stability.sam_cycle_amplitude(2.0, 0.25, RHO, 0.5) ** 2)
    assert (b_1**2 + b_2**2) / 2 == pytest.approx(1.8 * stability.sam_cycle_amplitude(2.0, 0.25, RHO) ** 2)


@mutation("the edge 2 / eta of gradient descent", edge=lambda eta, rho: 2 / eta)
@mutation("it is at the minimum after three steps", steps=3)
def test_thm_usam_edge(
    edge: Callable[[float, float], float] = stability.contrast_limit, steps: int = 3000
) -> None:
    """Unnormalized SAM shrinks just below the edge, grows just above it, and ends at the minimum below it."""
    rng = np.random.default_rng(207)
    for _ in range(200):
        eta, rho = 10.0 ** rng.uniform(-3, 0), 10.0 ** rng.uniform(-2, 0.5)
        for factor in (0.98, 1.02):
            h = factor * edge(eta, rho)
            bowl = landscapes.bowl(np.array([h]))
            end = dynamics.trajectory(dynamics.unnormalized_sam(eta, rho), bowl, np.array([1.0]), 20)[-1, 0]
            assert (abs(end) < 1) == (factor < 1)
    bowl, start = landscapes.bowl(CURVATURES), np.ones(4)
    end = dynamics.trajectory(dynamics.unnormalized_sam(0.1, RHO), bowl, start, steps)[-1]
    assert np.linalg.norm(end) <= 1e-30
