"""Part 3, Monge SAM: the theorems on the graph metric and on what is invariant, each with its mutation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, geometry, landscapes, stability
from llqr_sam_ref.exact._arrays import Array
from tests.exact.numerical import relative
from tests.theorems.catalogue import mutation, require


def _norm(v: Array) -> float:
    return float(np.linalg.norm(v))


def _monge(g: Array, rho: float, alpha: float = 1.0) -> Array:
    return geometry.ascent_step(g, rho, geometry.Monge(g, alpha))


class _Quartic:
    """A smooth loss in d weights, L = sum_k q_k (a_k . w)^2 / 2 + (b_k . w)^3 / 6."""

    def __init__(self, rng: np.random.Generator, d: int = 4) -> None:
        self.q, self.a, self.b = (
            rng.uniform(0.5, 2, d),
            rng.standard_normal((d, d)),
            rng.standard_normal((d, d)),
        )

    def gradient(self, w: Array) -> Array:
        return self.a.T @ (self.q * (self.a @ w)) + self.b.T @ (self.b @ w) ** 2 / 2

    def hessian(self, w: Array) -> Array:
        return self.a.T @ (self.q[:, None] * self.a) + self.b.T @ ((self.b @ w)[:, None] * self.b)


def _inverse(g: Array, alpha: float) -> Array:
    return np.eye(len(g)) - alpha**2 * np.outer(g, g) / (1 + alpha**2 * g @ g)


@mutation(
    "the denominator is 2 + alpha^2 |g|^2",
    inverse=lambda g, alpha: np.eye(len(g)) - alpha**2 * np.outer(g, g) / (2 + alpha**2 * g @ g),
)
@mutation("the slope counts half", matrix=lambda metric, d: (metric.matrix(d) + np.eye(d)) / 2)
def test_thm_monge_inverse(
    inverse: Callable[[Array, float], Array] = _inverse,
    matrix: Callable[[geometry.Monge, int], Array] = lambda metric, d: metric.matrix(d),
) -> None:
    rng = np.random.default_rng(301)
    for _ in range(40):
        d = int(rng.integers(2, 7))
        g, alpha = rng.standard_normal(d), float(rng.uniform(0.1, 2))
        g *= rng.uniform(0.01, 10) / _norm(g)
        metric = geometry.Monge(g, alpha)
        G, s2 = matrix(metric, d), alpha**2 * g @ g
        slope = np.vstack([np.eye(d), alpha * g])  # the Jacobian of w -> (w, alpha L(w))
        assert np.max(np.abs(G - slope.T @ slope)) < 1e-11
        assert np.max(np.abs(G @ inverse(g, alpha) - np.eye(d))) < 1e-11
        v = rng.standard_normal(d)
        np.testing.assert_allclose(metric.solve(v), inverse(g, alpha) @ v, rtol=0, atol=1e-11 * _norm(v))
        assert abs(np.linalg.det(G) / (1 + s2) - 1) < 1e-11
        np.testing.assert_allclose(np.linalg.eigvalsh(G), np.append(np.ones(d - 1), 1 + s2), rtol=1e-11)


@mutation("without the root", shrink=lambda s, alpha: 1 + alpha**2 * s**2)
@mutation("the question is SAM's", asked=lambda g, rho, alpha: geometry.ascent_step(g, rho))
def test_thm_msam_radius_gain(
    shrink: Callable[[float, float], float] = lambda s, alpha: float(np.sqrt(1 + alpha**2 * s**2)),
    asked: Callable[[Array, float, float], Array] = lambda g, rho, alpha: _monge(g, rho, alpha),
) -> None:
    rng = np.random.default_rng(302)
    for _ in range(60):
        d, s = int(rng.integers(2, 6)), float(10.0 ** rng.uniform(-4, 3))
        alpha, rho = float(10.0 ** rng.uniform(-1, 1)), float(rng.uniform(0.01, 1))
        g = rng.standard_normal(d)
        g *= s / _norm(g)
        e = asked(g, rho, alpha)
        G = np.eye(d) + alpha**2 * np.outer(g, g)
        dense = np.linalg.solve(G, g)
        assert relative(rho * g / (s * shrink(s, alpha)), rho * dense / np.sqrt(g @ dense)) < 1e-8
        assert abs(_norm(e) * shrink(s, alpha) / rho - 1) < 1e-12
        assert abs(g @ e * shrink(s, alpha) / (rho * s) - 1) < 1e-12
        assert abs(np.hypot(_norm(e), alpha * (g @ e)) / rho - 1) < 1e-12  # its length on the graph
        assert _norm(e) <= min(rho, rho / (alpha * s)) * (1 + 1e-15)
        assert g @ e <= min(rho * s, rho / alpha) * (1 + 1e-15)


@mutation("length rho / (1 + s)", length=lambda s: 1 / (1 + s))
def test_cor_msam_limits(
    length: Callable[[float], float] = lambda s: _norm(_monge(np.array([s, 0.0]), 1.0)),
) -> None:
    assert abs(length(0.1) - (1 - 0.1**2 / 2)) < 0.5 * 0.1**4
    assert abs(1e3 * length(1e3) - 1) < 1e-6
    assert abs(length(1e3) - 9.999995e-4) < 1e-12


@mutation("the scale c is ignored", length=lambda s, c: 1 / np.sqrt(1 + s**2))
@mutation("the root is left out", length=lambda s, c: 1 / (1 + c**2 * s**2))
@mutation("the gradient is scaled by c^2", scaled=lambda g, c: c**2 * g)
@mutation("the sign of c does not matter", scaled=lambda g, c: -c * g)
@mutation("clipping to norm 2 is as good", clip=2.0)
def test_thm_msam_loss_scale(
    length: Callable[[float, float], float] = lambda s, c: float(1 / np.sqrt(1 + c**2 * s**2)),
    scaled: Callable[[Array, float], Array] = lambda g, c: c * g,
    clip: float = 1.0,
) -> None:
    rng = np.random.default_rng(303)
    g = rng.standard_normal(5)
    s = _norm(g)
    for c in (1e-3, 0.1, 10.0, 128.0):
        cg = scaled(g, c)
        assert abs(_norm(_monge(cg, 1.0)) / length(s, c) - 1) < 1e-13
        np.testing.assert_allclose(_monge(g, 1.0, alpha=c), _monge(cg, 1.0), rtol=1e-13)
        np.testing.assert_allclose(geometry.ascent_step(cg, 1.0), geometry.ascent_step(g, 1.0), rtol=1e-13)
    assert abs(length(30, 1) - 0.0333) < 1e-4
    assert abs(_norm(_monge(clip * g / s, 1.0)) - 0.5**0.5) < 1e-12  # clipped to norm 1


@mutation("a scaled rotation 1.5 Q belongs to the group", scale=1.5)
@mutation("nothing but rotations was tried", others=(1.0, 1.0))
def test_thm_msam_equivariance_group(scale: float = 1.0, others: tuple[float, float] = (1.5, 2.0)) -> None:
    rng = np.random.default_rng(304)
    worst_non_rigid = np.inf
    for _ in range(20):
        Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
        A = scale * Q
        g = rng.standard_normal(4)
        assert relative(A @ _monge(A.T @ g, 0.3), _monge(g, 0.3)) < 1e-13
        assert relative(A @ geometry.ascent_step(A.T @ g, 0.3), geometry.ascent_step(g, 0.3)) < 1e-13
        for B in (others[0] * Q, Q @ np.diag([1.0, 1.0, 1.0, others[1]])):
            errors = [
                relative(B @ _monge(B.T @ v, 0.3), _monge(v, 0.3)) for v in rng.standard_normal((20, 4))
            ]
            worst_non_rigid = min(worst_non_rigid, max(errors))
    assert worst_non_rigid > 0.05


@mutation("A is the identity", A=np.eye(2))
def test_cex_msam_diagonal_scaling(A: Array = np.diag([1.0, 10.0])) -> None:
    g = np.ones(2)
    here, there = _monge(g, 1.0), A @ _monge(A.T @ g, 1.0)
    assert abs(here[0] - 1 / np.sqrt(6)) < 1e-12
    assert abs(there[1] / there[0] - 100) < 1e-9
    assert relative(there, here) > 1


@mutation("the ambient identity is not carried along", ambient=lambda J: np.eye(len(J)))
def test_cor_monge_transport(ambient: Callable[[Array], Array] = lambda J: J.T @ J) -> None:
    rng = np.random.default_rng(305)
    off = []
    for _ in range(20):
        J, g = rng.standard_normal((4, 4)), rng.standard_normal(4)
        g_phi = J.T @ g
        carried = J.T @ geometry.Monge(g).matrix(4) @ J
        assert np.max(np.abs(carried - (ambient(J) + np.outer(g_phi, g_phi)))) < 1e-12 * np.max(
            np.abs(carried)
        )
        e_phi = geometry.ascent_step(g_phi, 0.2, geometry.PositiveDefinite(carried))
        assert relative(J @ e_phi, _monge(g, 0.2)) < 1e-8
        off.append(relative(J @ _monge(g_phi, 0.2), _monge(g, 0.2)))
    assert max(off) > 0.05


def _rename(
    rng: np.random.Generator, d: int
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], Array]:
    """A curved renaming psi, its Jacobian, and a point."""
    A = rng.standard_normal((d, d)) + 2 * np.eye(d)
    return lambda f: A @ f + 0.3 * np.sin(f), lambda f: A + 0.3 * np.diag(np.cos(f)), rng.standard_normal(d)


@mutation("the old metric is used unchanged in the new coordinates", carry=lambda G, J: G)
def test_thm_tangent_covariance(carry: Callable[[Array, Array], Array] = lambda G, J: J.T @ G @ J) -> None:
    rng = np.random.default_rng(306)
    for _ in range(40):
        d = int(rng.integers(2, 6))
        _, jacobian, phi = _rename(rng, d)
        root = rng.standard_normal((d, d))
        J, g, G = jacobian(phi), rng.standard_normal(d), root @ root.T + 0.1 * np.eye(d)
        e = geometry.ascent_step(g, 0.1, geometry.PositiveDefinite(G))
        e_phi = geometry.ascent_step(J.T @ g, 0.1, geometry.PositiveDefinite(carry(G, J)))
        assert relative(J @ e_phi, e) < 1e-8
        assert abs((J.T @ g) @ e_phi / (g @ e) - 1) < 1e-8


@mutation("the leading factor is 1", factor=1.0)
def test_thm_point_discrepancy(factor: float = 0.5) -> None:
    rng = np.random.default_rng(307)
    psi, jacobian, phi = _rename(rng, 3)
    J = jacobian(phi)
    direction = rng.standard_normal(3)
    remainders = []
    for rho in (1e-1, 1e-2, 1e-3):
        e_phi = rho * direction
        discrepancy = psi(phi + e_phi) - (psi(phi) + J @ e_phi)
        leading = (
            factor * -0.3 * np.sin(phi) * e_phi**2
        )  # the second derivative of psi, applied twice to e_phi
        remainders.append(_norm(discrepancy - leading))
    rates = -np.diff(np.log10(remainders))
    assert np.all(np.abs(rates - 3) < 0.1)
    affine = J @ (phi + direction) - (J @ phi + J @ direction)
    assert _norm(affine) < 1e-13


@mutation("T = |w| + 0.1", eta=0.1)
def test_thm_asam_covariance(eta: float = 0.0) -> None:
    rng = np.random.default_rng(308)

    def step(w: Array, g: Array, eta: float) -> Array:
        return geometry.ascent_step(g, 0.5, geometry.Adaptive(w, eta=eta))

    broken, general = [], []
    for _ in range(20):
        w, g = rng.standard_normal(4), rng.standard_normal(4)
        A = np.diag(10.0 ** rng.uniform(-1, 1, 4) * rng.choice([-1, 1], 4))
        e = step(w, g, eta)
        assert relative(A @ step(np.linalg.solve(A, w), A.T @ g, eta), e) < 1e-12
        broken.append(relative(A @ step(np.linalg.solve(A, w), A.T @ g, 0.01), step(w, g, 0.01)))
        B = np.linalg.qr(rng.standard_normal((4, 4)))[0]
        general.append(relative(B @ step(B.T @ w, B.T @ g, 0.0), step(w, g, 0.0)))
    assert max(broken) > 1e-3
    assert min(general) > 0.1


def _two_layer_gradient(a: float, loss_scale: float = 1.0) -> Array:
    """Gradient of a small ReLU network, its first layer multiplied by a and its second divided by a."""
    rng = np.random.default_rng(309)
    W1, W2 = a * rng.standard_normal((6, 3)), rng.standard_normal((2, 6)) / a
    x, y = rng.standard_normal((3, 20)), 3 * rng.standard_normal((2, 20))
    hidden = np.maximum(W1 @ x, 0)
    error = 2 * (W2 @ hidden - y) / 20
    return loss_scale * np.concatenate([
        ((W2.T @ error) * (hidden > 0) @ x.T).ravel(),
        (error @ hidden.T).ravel(),
    ])


@mutation("SAM's perturbation instead", step=lambda g, rho: geometry.ascent_step(g, rho))
def test_prop_msam_steep_gain(step: Callable[[Array, float], Array] = _monge) -> None:
    rho, gains, sam = 0.1, [], []
    for a in (1.0, 5.0, 20.0):
        g = _two_layer_gradient(a)
        s, gain = _norm(g), g @ step(g, rho) / rho
        require(s > 3, "the slope is steep")
        assert 1 - 1 / (2 * s**2) <= gain < 1
        gains.append(gain)
        sam.append(s)
    assert max(gains) / min(gains) < 1.06
    assert max(sam) / min(sam) > 5


@mutation("on steep ground instead, loss times 1000", loss_scale=1e3)
@mutation("the second layer's gradient is divided too", second=lambda a: 1 / a)
def test_cex_msam_flat_gain(loss_scale: float = 1e-6, second: Callable[[float], float] = lambda a: a) -> None:
    """The rise of a small loss, by the names: sqrt(|g_1|^2/a^2 + a^2 |g_2|^2) over the gradient's length."""

    def rise(g: Array) -> float:
        return float(g @ _monge(g, 0.1))

    def factor(g: Array, first: int, a: float) -> float:
        return _norm(np.concatenate([g[:first] / a, second(a) * g[first:]])) / _norm(g)

    g = _two_layer_gradient(1.0, loss_scale)
    for a in (0.3, 3.0, 20.0):
        ratio = rise(_two_layer_gradient(a, loss_scale)) / rise(g)
        assert ratio == pytest.approx(factor(g, 18, a), rel=1e-5)
    banana, root = landscapes.banana(), np.sqrt(2)
    here = loss_scale * banana.gradient(np.array([root, root]))
    there = loss_scale * banana.gradient(np.array([20 * root, root / 20]))
    assert rise(there) / rise(here) == pytest.approx(factor(here, 1, 20.0), rel=1e-5)
    assert f"{rise(there) / rise(here):.2f}" == "14.14"


def _penalty_errors(radius: Callable[[float], float], slope: Callable[[float], float]) -> list[float]:
    """Relative distance of (gradient at w + e, minus g)/rho from the penalty's gradient, rho = 1e-3, 1e-4."""
    loss, rng = _Quartic(np.random.default_rng(310)), np.random.default_rng(311)
    w = 0.4 * rng.standard_normal(4)
    g, H = loss.gradient(w), loss.hessian(w)
    s = _norm(g)
    penalty = slope(s) * H @ g / s
    return [relative((loss.gradient(w + rho * radius(s) * g / s) - g) / rho, penalty) for rho in (1e-3, 1e-4)]


@mutation("arctan in place of asinh", slope=lambda s: 1 / (1 + s * s))
def test_cor_msam_asinh(slope: Callable[[float], float] = lambda s: 1 / float(np.sqrt(1 + s * s))) -> None:
    def radius(s: float) -> float:
        return _norm(_monge(np.array([s, 0.0]), 1.0))

    coarse, fine = _penalty_errors(radius, slope)
    assert fine < 1e-3
    assert abs(coarse / fine - 10) < 0.6
    s, h = 1.7, 1e-6  # the slope is the derivative of asinh
    assert abs((np.arcsinh(s + h) - np.arcsinh(s - h)) / (2 * h) - slope(s)) < 1e-9


@mutation("compared with asinh the discrepancy is gone", own=lambda s: 1 / np.sqrt(1 + s * s))
def test_cex_msam_not_own_objective(
    own: Callable[[float], float] = lambda s: float((1 + s * s) ** -1.5),
) -> None:
    """Against the gradient of L + rho s/sqrt(1+s^2) the update is off by the factor 1 + s^2."""
    rho = 1e-6
    for seed in range(10):
        rng = np.random.default_rng(320 + seed)
        loss, w = _Quartic(rng), 0.4 * rng.standard_normal(4)
        g, H = loss.gradient(w), loss.hessian(w)
        s = _norm(g)
        update = (loss.gradient(w + _monge(g, rho)) - g) / rho
        assert abs(relative(update, own(s) * H @ g / s) / s**2 - 1) < 0.02


@mutation("SAM's amplitude", amplitude=lambda h, eta, rho: stability.sam_cycle_amplitude(h, eta, rho))
def test_thm_msam_two_cycle(
    amplitude: Callable[[float, float, float], float] = stability.monge_cycle_amplitude,
) -> None:
    curvatures = np.array([4.0, 2.0, 1.0, 0.5])
    landscape, rho = landscapes.bowl(curvatures), 0.1
    rng = np.random.default_rng(312)
    for eta in (0.01, 0.1, 0.2, 0.3, 0.4):
        method = dynamics.monge_sam(eta, rho)
        for axis, h in enumerate(curvatures):
            x = np.zeros(4)
            x[axis] = amplitude(float(h), eta, rho)
            assert relative(dynamics.step(method, landscape, x), -x) < 1e-12
            assert x[axis] < stability.sam_cycle_amplitude(float(h), eta, rho)
    path = dynamics.trajectory(dynamics.monge_sam(0.1, rho), landscape, rng.standard_normal((5, 4)), 3000)
    end = amplitude(4.0, 0.1, rho)
    np.testing.assert_allclose(
        np.abs(path[-1]), np.broadcast_to([end, 0, 0, 0], (5, 4)), rtol=1e-9, atol=1e-9 * end
    )
    assert abs(end - 0.024877137294) < 1e-12
