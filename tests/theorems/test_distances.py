"""Part 1, distances between networks: divergences, Gauss-Newton, Fisher, and what survives renaming; with mutations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import curvature, geometry
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.stages import log_softmax
from tests.exact.numerical import numerical_gradient, relative
from tests.exact.relaxed import random_spd
from tests.theorems.catalogue import mutation


def _softmax(x: Array) -> Array:
    return np.asarray(np.exp(log_softmax(x[None])[0]))


class _Model:
    """Outputs x(w) = B tanh(C w) + E w of 7 weights, and their Jacobian; for complex w too."""

    def __init__(self, rng: np.random.Generator, outputs: int = 4, d: int = 7, bend: float = 1.0) -> None:
        self.B, self.C = bend * rng.standard_normal((outputs, 5)), rng.standard_normal((5, d)) / 2
        self.E = rng.standard_normal((outputs, d))

    def outputs(self, w: Array) -> Array:
        return np.asarray(self.B @ np.tanh(self.C @ w) + self.E @ w)

    def jacobian(self, w: Array) -> Array:
        return np.asarray(self.B @ ((1 - np.tanh(self.C @ w) ** 2)[:, None] * self.C) + self.E)

    def bend(self, w: Array, k: int) -> Array:
        """The Hessian of output k."""
        t = np.tanh(self.C @ w)
        return np.asarray(self.C.T @ ((self.B[k] * -2 * t * (1 - t**2))[:, None] * self.C))


def _covariance(pi: Array) -> Array:
    return np.asarray(np.diag(pi) - np.outer(pi, pi))


@mutation("the frozen probabilities are a label", frozen=lambda pi: np.eye(len(pi))[0])
@mutation(
    "the divergence is taken the other way",
    kl=lambda pi, log_moved: np.exp(log_moved) @ (log_moved - np.log(pi)),
)
@mutation("the output curvature is diag(pi)", middle=np.diag)
@mutation("labels are drawn uniformly", chance=lambda pi: np.full(len(pi), 1 / len(pi)))
def test_thm_kl_hessian_fisher(
    frozen: Callable[[Array], Array] = lambda pi: pi,
    kl: Callable[[Array, Array], float] = lambda pi, log_moved: float(pi @ (np.log(pi) - log_moved)),
    middle: Callable[[Array], Array] = _covariance,
    chance: Callable[[Array], Array] = lambda pi: pi,
) -> None:
    """Gradient and Hessian of KL by differentiating it, against J^T(diag pi - pi pi^T)J and drawn scores."""
    rng = np.random.default_rng(130)
    for _ in range(10):
        model, w = _Model(rng), rng.standard_normal(7)
        pi, J = _softmax(model.outputs(w)), model.jacobian(w)

        def slope(v: Array, model: _Model = model, pi: Array = frozen(pi)) -> Array:
            return np.asarray(model.jacobian(v).T @ (_softmax(model.outputs(v)) - pi))

        def divergence(v: Array, model: _Model = model, pi: Array = pi) -> float:
            return kl(pi, log_softmax(model.outputs(v)[None])[0])

        v = w + rng.standard_normal(7) / 5
        assert np.abs(slope(w)).max() < 1e-14
        np.testing.assert_allclose(slope(v), numerical_gradient(divergence, v), rtol=0, atol=1e-9)
        H = curvature.complex_step(slope, w)
        assert relative(J.T @ middle(pi) @ J, H) < 1e-12
        scores = J.T @ (np.eye(len(pi)) - pi[:, None])
        assert relative(scores @ np.diag(chance(pi)) @ scores.T, H) < 1e-12


def _bregman(x: Array, t: Array, moved: Array) -> float:
    """The gap of l(x) = log sum exp x - t . x above its tangent."""

    def loss(x: Array) -> float:
        return float(x[0] - log_softmax(x[None])[0, 0] - t @ x)

    return loss(moved) - loss(x) - float((_softmax(x) - t) @ (moved - x))


@mutation(
    "the tangent is not subtracted",
    gap=lambda x, t, moved: float(x[0] - log_softmax(moved[None])[0, 0] - t @ moved),
)
@mutation("the Hessian is that of the outputs alone", ggn=lambda J, C: J.T @ J)
@mutation("it is the divergence the other way round", kl=lambda pi, moved: moved @ np.log(moved / pi))
@mutation("the squared distance comes with a factor 1/2", factor=0.5)
def test_prop_ggn_divergence(
    gap: Callable[[Array, Array, Array], float] = _bregman,
    ggn: Callable[[Array, Array], Array] = lambda J, C: J.T @ C @ J,
    kl: Callable[[Array, Array], float] = lambda pi, moved: float(pi @ np.log(pi / moved)),
    factor: float = 1.0,
) -> None:
    """Zero slope, the stated Hessian, no negative value; the two divergences by name."""
    rng = np.random.default_rng(131)
    for _ in range(10):
        model, w, t = _Model(rng), rng.standard_normal(7), np.eye(4)[int(rng.integers(4))]
        x, J = model.outputs(w), model.jacobian(w)
        pi = _softmax(x)
        value = [gap(x, t, model.outputs(w + s * v)) for v in np.eye(7) for s in (-1e-3, 1e-3)]
        assert np.abs(np.diff(value)[::2]).max() < 1e-7  # symmetric to second order: no slope
        v = rng.standard_normal(7)
        along = [gap(x, t, model.outputs(w + s * v)) for s in (-1e-3, 1e-3)]
        np.testing.assert_allclose(sum(along) / 1e-6, v @ ggn(J, _covariance(pi)) @ v, rtol=1e-4)
        moved = x + rng.standard_normal(4)
        np.testing.assert_allclose(gap(x, t, moved), kl(pi, _softmax(moved)), rtol=1e-10)
        squares = float(np.sum((moved - t) ** 2) - np.sum((x - t) ** 2) - 2 * (x - t) @ (moved - x))
        np.testing.assert_allclose(squares, factor * np.sum((moved - x) ** 2), rtol=1e-10)


@mutation("the second sum is left out", second=lambda slope, bends: 0)
@mutation("the outputs may bend all the same", bend=1.0)
@mutation("the loss may have a slope all the same", miss=1.0)
def test_thm_ggn_decomposition(
    second: Callable[[Array, Array], Array | int] = lambda slope, bends: np.tensordot(slope, bends, 1),
    bend: float = 0.0,
    miss: float = 0.0,
) -> None:
    """The splitting against the derivative of the gradient; both cases of equality."""
    rng = np.random.default_rng(132)

    def matrices(model: _Model, w: Array, target: Array) -> tuple[Array, Array, Array]:
        def slope(v: Array) -> Array:
            return np.asarray(model.jacobian(v).T @ (_softmax(model.outputs(v)) - target))

        J, pi = model.jacobian(w), _softmax(model.outputs(w))
        bends = np.stack([model.bend(w, k) for k in range(4)])
        G = J.T @ _covariance(pi) @ J
        return curvature.complex_step(slope, w), G, G + second(pi - target, bends)

    for _ in range(10):
        model, w, label = _Model(rng), rng.standard_normal(7), np.eye(4)[int(rng.integers(4))]
        H, G, split = matrices(model, w, label)
        assert relative(split, H) < 1e-12
        H, G, _ = matrices(_Model(rng, bend=bend), w, label)
        assert relative(G, H) < 1e-12
        pi = _softmax(model.outputs(w))
        H, G, _ = matrices(model, w, pi + miss * (label - pi))
        assert relative(G, H) < 1e-12


@mutation("the Fisher matrix depends on w", true=lambda x, away: (1 + away**2) * np.mean(x**2))
@mutation("the empirical Fisher is the Fisher", empirical=lambda x, away: np.mean(x**2))
def test_cex_empirical_fisher(
    true: Callable[[Array, float], float] = lambda x, away: float(np.mean(x**2)),
    empirical: Callable[[Array, float], float] = lambda x, away: float(away**2 * np.mean(x**4)),
) -> None:
    """Mean squared gradients: labels of the data, and labels drawn (by quadrature, exact for squares)."""
    x = np.random.default_rng(133).standard_normal(50)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    for away in (0.0, 1e-3, 1.0, 3.0):
        w, target = 0.7 + away, 0.7
        drawn = w * x[:, None] + nodes
        scores = (w * x[:, None] - drawn) * x[:, None]
        fisher = float(np.mean(scores**2 @ weights) / weights.sum())
        np.testing.assert_allclose(fisher, true(x, away), rtol=1e-12)
        gradients = (w * x - target * x) * x
        np.testing.assert_allclose(np.mean(gradients**2), empirical(x, away), rtol=1e-9, atol=1e-30)


@mutation("the gradient step is carried", newton=lambda H, g: g)
@mutation("the Gauss-Newton matrix is carried unchanged", carried=lambda G, A: G)
@mutation("the Gauss-Newton step is the gradient step", gauss_newton=lambda G, g: g)
@mutation("gradient steps agree for symmetric maps", rigid=lambda A: A + A.T)
@mutation("gradient steps differ for rotations too", skew=lambda A: np.linalg.qr(A)[0])
def test_thm_newton_affine(
    newton: Callable[[Array, Array], Array] = np.linalg.solve,
    carried: Callable[[Array, Array], Array] = lambda G, A: A.T @ G @ A,
    gauss_newton: Callable[[Array, Array], Array] = np.linalg.solve,
    rigid: Callable[[Array], Array] = lambda A: np.linalg.qr(A)[0],
    skew: Callable[[Array], Array] = lambda A: A,
) -> None:
    """Newton and Gauss-Newton steps found in both coordinates of a renamed network."""
    rng = np.random.default_rng(134)
    for _ in range(20):
        model, A, b = _Model(rng, outputs=7, d=7), rng.standard_normal((7, 7)) + 2 * np.eye(7), rng.random(7)
        target = rng.standard_normal(7)

        def slope(w: Array, model: _Model = model, target: Array = target) -> Array:
            return np.asarray(model.jacobian(w).T @ (model.outputs(w) - target))

        phi = rng.standard_normal(7)
        w = A @ phi + b
        renamed = curvature.complex_step(lambda p, A=A, b=b: A.T @ slope(A @ p + b), phi)  # type: ignore[misc]
        g, H, J = slope(w), curvature.complex_step(slope, w), model.jacobian(w)
        assert relative(A @ newton(renamed, A.T @ g), newton(H, g)) < 1e-8
        G_renamed = (J @ A).T @ (J @ A)
        assert relative(carried(J.T @ J, A), G_renamed) < 1e-12
        assert relative(A @ gauss_newton(G_renamed, A.T @ g), gauss_newton(J.T @ J, g)) < 1e-7
        R = rigid(A)
        assert relative(R @ (R.T @ g), g) < 1e-12
        S = skew(A)
        assert relative(S @ (S.T @ g), g) > 0.1


@mutation("the Hessian transforms like a metric", extra=lambda g, bends: 0)
@mutation(
    "the Gauss-Newton matrix has the extra term too", ggn_extra=lambda g, bends: np.tensordot(g, bends, 1)
)
@mutation("renaming w = phi^2 leaves a straight loss straight", example=0.0)
def test_cex_hessian_not_a_tensor(
    extra: Callable[[Array, Array], Array | int] = lambda g, bends: np.tensordot(g, bends, 1),
    ggn_extra: Callable[[Array, Array], Array | int] = lambda g, bends: 0,
    example: float = 2.0,
) -> None:
    """Quadratic renamings of a network with squared error: Hessian and Gauss-Newton in both coordinates."""
    rng = np.random.default_rng(135)
    for _ in range(10):
        model, target, phi = _Model(rng), rng.standard_normal(4), rng.standard_normal(7) / 2
        A, S = rng.standard_normal((7, 7)), rng.standard_normal((7, 7, 7)) / 5
        S = S + S.transpose(0, 2, 1)

        def psi(p: Array, A: Array = A, S: Array = S) -> Array:
            return np.asarray(A @ p + (S @ p) @ p / 2)

        def slope(w: Array, model: _Model = model, target: Array = target) -> Array:
            return np.asarray(model.jacobian(w).T @ (model.outputs(w) - target))

        def renamed(p: Array, A: Array = A, S: Array = S) -> Array:
            return np.asarray((A + S @ p).T @ slope(psi(p)))

        J_psi, w = A + S @ phi, psi(phi)
        H, J = curvature.complex_step(slope, w), model.jacobian(w)
        assert (
            relative(J_psi.T @ H @ J_psi + extra(slope(w), S), curvature.complex_step(renamed, phi)) < 1e-12
        )
        J_phi = curvature.complex_step(lambda p: model.outputs(psi(p)), phi)  # noqa: B023
        G = J_psi.T @ (J.T @ J) @ J_psi + ggn_extra(slope(w), S)
        assert relative(G, J_phi.T @ J_phi) < 1e-12
    bend = curvature.complex_step(lambda p: 2 * p, np.array([1.0]))  # L = phi^2
    assert bend.item() == example


def _steepest(g: Array, F: Array) -> Array:
    return geometry.ascent_step(g, 0.1, geometry.PositiveDefinite(F))


def _diagonal(F: Array) -> Array:
    return np.diag(np.diag(F))


@mutation("the diagonal is taken before a general map", full=_diagonal)
@mutation(
    "damping does no harm to a diagonal map of a diagonal", scaled=lambda F: _diagonal(F) + np.eye(len(F))
)
@mutation("a diagonal survives rotations", turned=_diagonal)
@mutation("the undamped matrix is lost under general maps", lost=lambda F: F)
@mutation("a full matrix is lost by its diagonal under general maps", diagonal_lost=lambda F: F)
def test_thm_fisher_linear_covariance(
    full: Callable[[Array], Array] = lambda F: F,
    scaled: Callable[[Array], Array] = _diagonal,
    turned: Callable[[Array], Array] = lambda F: F + np.eye(len(F)),
    lost: Callable[[Array], Array] = lambda F: F + np.eye(len(F)),
    diagonal_lost: Callable[[Array], Array] = _diagonal,
) -> None:
    """Each ruler computed in both coordinates: how far the carried step is from the step."""
    rng = np.random.default_rng(136)

    def off(ruler: Callable[[Array], Array], F: Array, A: Array, g: Array) -> float:
        return relative(A @ _steepest(A.T @ g, ruler(A.T @ F @ A)), _steepest(g, ruler(F)))

    for _ in range(20):
        F, g, A = random_spd(rng, 5), rng.standard_normal(5), rng.standard_normal((5, 5)) + np.eye(5)
        assert off(full, F, A, g) < 1e-8
        assert off(scaled, F, np.diag(rng.uniform(0.1, 10, 5)), g) < 1e-12
        assert off(turned, F, np.linalg.qr(A)[0], g) < 1e-11
    one = np.ones(2)
    assert off(lost, np.eye(2), np.diag([2.0, 1.0]), one) > 0.05
    assert (
        off(diagonal_lost, np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]), one) > 0.05
    )
