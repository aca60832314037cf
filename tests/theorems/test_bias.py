"""Part 2, SAM: what SAM minimizes on a level floor, and what shards change, each statement with its mutation.

Letters as in the book: g and H the gradient and Hessian of L, h its eigenvalues, eta the learning rate, rho
the radius, epsilon the perturbation, m the size of a shard, n the size of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, landscapes, stability, trust_region
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.dynamics import Method
from llqr_sam_ref.exact.landscapes import Landscape
from tests.theorems.catalogue import mutation

Scalar = Callable[[float], float]


def _numerical_gradient(function: Callable[[Array], float], w: Array, step: float = 1e-3) -> Array:
    """Five-point differences."""
    weights = ((-2, 1), (-1, -8), (1, 8), (2, -1))
    axes = step * np.eye(w.size)
    return np.array([sum(c * function(w + k * axis) for k, c in weights) / (12 * step) for axis in axes])


@mutation("unnormalized SAM's penalty is rho |g|^2, without the half", penalty_of_s=lambda s: s**2)
@mutation("the penalty of a rule is rho |g| r(|g|), as if r did not vary", penalty_of_cube=lambda s: s**4)
@mutation("M-SAM's penalty is rho arctan |g|", penalty_of_monge=np.arctan)
@mutation("SAM's penalty is rho |g|^2 / 2", penalty_of_one=lambda s: s**2 / 2)
def test_thm_radial_regulariser(
    penalty_of_one: Scalar = lambda s: s,
    penalty_of_s: Scalar = lambda s: s**2 / 2,
    penalty_of_monge: Scalar = np.arcsinh,
    penalty_of_cube: Scalar = lambda s: s**4 / 4,
) -> None:
    """(grad L(w + epsilon) - g)/rho against the numerical gradient of R(|grad L|), at three radii."""
    banana, w = landscapes.banana(), np.array([1.3, 0.9])
    g = banana.gradient(w)
    length = float(np.linalg.norm(g))
    rules: list[tuple[Scalar, Scalar]] = [
        (lambda s: 1.0, penalty_of_one),
        (lambda s: s, penalty_of_s),
        (lambda s: (1 + s * s) ** -0.5, penalty_of_monge),
        (lambda s: s**3, penalty_of_cube),
    ]
    for radius, R in rules:

        def penalty(x: Array, R: Scalar = R) -> float:
            return float(R(float(np.linalg.norm(banana.gradient(x)))))

        claimed = _numerical_gradient(penalty, w)
        errors = []
        for rho in (1e-2, 1e-3, 1e-4):
            epsilon = rho * radius(length) * g / length
            errors.append(float(np.linalg.norm((banana.gradient(w + epsilon) - g) / rho - claimed)))
        assert errors[2] <= 2e-3 * float(np.linalg.norm(claimed))
        assert errors[0] / errors[1] == pytest.approx(10, abs=0.6)


def _bent_valley() -> Landscape:
    """L = (3 + u^2) x^2 / 2 at w = (u, x)."""

    def slope(w: Array) -> Array:
        u, x = w[..., 0], w[..., 1]
        return np.stack([u * x**2, (3 + u**2) * x], axis=-1)

    def curvature(w: Array) -> Array:
        u, x = w[..., 0], w[..., 1]
        rows = [np.stack([x**2, 2 * u * x], -1), np.stack([2 * u * x, 3 + u**2], -1)]
        return np.stack(rows, axis=-2)

    return Landscape("bent valley", 2, lambda w: (3 + w[..., 0] ** 2) * w[..., 1] ** 2 / 2, slope, curvature)


def _slow_clock(h: float, h_slope: float, eta: float, rho: float) -> float:
    return -eta * rho**2 * h_slope / 2


@mutation("the rate -eta rho^2 h'/2 of vanishing eta h, at any eta h", drift=_slow_clock)
@mutation("unnormalized SAM drifts too: it is SAM", unnormalized=dynamics.sam)
@mutation("M-SAM at a strength of 1/rho still drifts as SAM does", monge_strength=1000.0)
def test_thm_sam_valley_drift(
    drift: Callable[..., float] = stability.valley_drift,
    unnormalized: Callable[..., Method] = dynamics.unnormalized_sam,
    monge_strength: float = 1.0,
) -> None:
    """From the cycle, two steps against twice the formula; the error is of relative order rho^2."""
    valley, eta = _bent_valley(), 0.1
    errors = []
    for rho in (1e-1, 1e-2, 1e-3):
        for method in (dynamics.sam(eta, rho), dynamics.monge_sam(eta, rho, monge_strength)):
            u = 0.5
            start = np.array([u, stability.sam_cycle_amplitude(3 + u**2, eta, rho)])
            path = dynamics.trajectory(method, valley, start, 42)
            u = path[40, 0]
            moved = (path[42, 0] - u) / 2
            errors.append(abs(moved / drift(3 + u**2, 2 * u, eta, rho) - 1))
    assert max(errors[-2:]) <= 1e-3
    assert errors[0] / errors[2] >= 50
    path = dynamics.trajectory(unnormalized(eta, 1e-2), valley, np.array([0.5, 0.1]), 400)
    assert abs(path[400, 0] - path[300, 0]) <= 1e-12


def _equal_parts(n: int, m: int) -> list[Array]:
    return np.split(np.arange(n), n // m)


def _one_and_the_rest(n: int, m: int) -> list[Array]:
    return [np.arange(n)] if m == n else [np.arange(1), np.arange(1, n)]


def _sam_step(g: Array, H: Array, rho: float) -> Array:
    """The first-order neighbor in place of the worst one; H is not asked."""
    return np.asarray(rho * g / np.linalg.norm(g))


def _sum(values: Array) -> Array:
    return np.asarray(values.sum(axis=0))


def _average(values: Array) -> Array:
    return np.asarray(values.mean(axis=0))


@mutation("gradients are summed inside a shard, not averaged", inside=_sum)
@mutation("parts of unequal size, each with the same weight", parts=_one_and_the_rest)
@mutation("the loss at SAM's neighbor of each shard grows too", maximizer=_sam_step)
def test_thm_m_sharpness_monotone(
    inside: Callable[[Array], Array] = _average,
    parts: Callable[[int, int], list[Array]] = _equal_parts,
    maximizer: Callable[[Array, Array, float], Array] = trust_region.trust_region_step,
) -> None:
    """Halving every shard of sixteen quadratics lowers neither the exact nor the linear m-sharpness."""
    rng = np.random.default_rng(211)
    rho, n = 0.5, 16
    for _ in range(20):
        root, g = rng.standard_normal((n, 3, 3)), rng.standard_normal((n, 3))
        H = 3 * root @ np.swapaxes(root, 1, 2)
        linear, exact = [], []
        for m in (16, 8, 4, 2, 1):
            shards = [(inside(g[part]), inside(H[part])) for part in parts(n, m)]
            worst = [(slope, bend, maximizer(slope, bend, rho)) for slope, bend in shards]
            linear.append(np.mean([rho * np.linalg.norm(slope) for slope, _ in shards]))
            exact.append(np.mean([slope @ e + e @ bend @ e / 2 for slope, bend, e in worst]))
        assert np.diff(linear).min() >= -1e-12
        assert np.diff(exact).min() >= -1e-9


def _realized(cubic: float, shards: list[list[int]]) -> float:
    """Mean of the losses w and -w/2 + cubic w^3, each at the SAM neighbor of its shard; w = 0, rho = 1."""
    slopes = np.array([1.0, -0.5])
    total = 0.0
    for shard in shards:
        e = float(np.sign(slopes[shard].mean()))
        total += sum([e, -e / 2 + cubic * e**3][i] for i in shard)
    return total / 2


@mutation("the same two losses without the cubic term", cubic=0.0)
@mutation("two shards that are in truth one", two=[[0, 1]])
def test_cex_m_sharpness_realised(cubic: float = 2.0, two: list[list[int]] | None = None) -> None:
    """Splitting lowers the loss at the points where SAM asks, from 1.25 to -0.25."""
    rise = _realized(cubic, [[0, 1]]) - _realized(cubic, two or [[0], [1]])
    assert rise == pytest.approx(1.5, abs=1e-15)


def _trace(H: Array) -> float:
    return float(np.trace(H))


def _top(H: Array) -> float:
    return float(np.linalg.eigvalsh(H)[-1])


def _m_sharpness(x: Array, m: int, rho: float) -> float:
    """Mean over shards of the worst loss in the ball around an interpolating minimum of the squared loss."""
    gains = []
    for part in np.split(x, len(x) // m):
        H = part.T @ part / m
        e = trust_region.trust_region_step(np.zeros(x.shape[1]), H, rho)
        gains.append(e @ H @ e / 2)
    return float(np.mean(gains))


@mutation("one sample per shard measures the top eigenvalue", one=_top)
@mutation("the whole batch measures the trace", whole=_trace)
@mutation("shards in between measure less than the whole batch", between=-1.0)
def test_thm_m_one_trace(
    one: Callable[[Array], float] = _trace, whole: Callable[[Array], float] = _top, between: float = 1.0
) -> None:
    """Both ends against maximizers found by the trust region, and what lies between, on ten designs."""
    rng = np.random.default_rng(212)
    rho = 0.3
    for _ in range(10):
        x = rng.standard_normal((16, 5))
        H = x.T @ x / 16
        sharpness = [_m_sharpness(x, m, rho) for m in (16, 8, 4, 2, 1)]
        assert sharpness[0] == pytest.approx(rho**2 * whole(H) / 2, rel=1e-10)
        assert sharpness[-1] == pytest.approx(rho**2 * one(H) / 2, rel=1e-10)
        assert between * np.diff(sharpness).min() >= 0


def _excess(h_left: float, h_right: float, rho: float) -> float:
    return rho**2 * (h_left - h_right) ** 2 / (4 * (h_left + h_right))


@mutation("the mean update vanishes at the minimum", shift=lambda h_left, h_right, rho: 0.0)
@mutation("the excess with L'' = h_left + h_right", excess=lambda a, b, rho: 2 * _excess(a, b, rho))
def test_thm_sam_stochastic_bias(
    shift: Callable[[float, float, float], float] = stability.stochastic_sam_shift,
    excess: Callable[[float, float, float], float] = _excess,
) -> None:
    """The mean update at the predicted point, the loss there, and where the mean of the iterates settles."""
    rng = np.random.default_rng(213)
    for _ in range(50):
        a, b, rho = (float(v) for v in rng.uniform((0.5, 0.5, 0.05), (4.0, 4.0, 0.2)))
        minimum = (b - a) / (a + b)
        x = minimum + shift(a, b, rho)
        if not -1 < x < 1:
            continue
        assert a * (x + rho + 1) + b * (x - rho - 1) == pytest.approx(0, abs=1e-13)
        loss = (a * (x + 1) ** 2 + b * (x - 1) ** 2) / 4
        least = (a * (minimum + 1) ** 2 + b * (minimum - 1) ** 2) / 4
        assert loss - least == pytest.approx(excess(a, b, rho), abs=1e-13)
    x, total = -0.6, 0.0
    for left in rng.random(200_000) < 0.5:
        h, c = (4.0, -1.0) if left else (1.0, 1.0)
        x -= 0.002 * h * (x + 0.2 * np.sign(x - c) - c)
        total += x
    assert total / 200_000 == pytest.approx(-0.6 + shift(4.0, 1.0, 0.2), abs=5e-3)
