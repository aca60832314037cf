"""Part 1, sharpness: worst and average over a ball, twins, the ball that rescales along; each with its mutations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import curvature
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.network import Network
from tests.exact.numerical import relative
from tests.theorems.catalogue import mutation


@mutation("the worst neighbor rises by rho^2 h_max", worst=lambda rho, h: rho**2 * h.max())
@mutation(
    "the mean curvature decides the worst neighbor, and all directions reach it",
    worst=lambda rho, h: rho**2 * h.mean() / 2,
    direction=lambda H: np.linalg.eigh(H)[1] @ np.ones(len(H)) / np.sqrt(len(H)),
)
@mutation("the average is rho^2 tr H/2", average=lambda rho, h: rho**2 * h.sum() / 2)
def test_thm_sharpness_quadratic(
    worst: Callable[[float, Array], float] = lambda rho, h: float(rho**2 * h.max() / 2),
    direction: Callable[[Array], Array] = lambda H: np.linalg.eigh(H)[1][:, -1],
    average: Callable[[float, Array], float] = lambda rho, h: float(rho**2 * h.mean() / 2),
) -> None:
    """The stated value at the top eigenvector, none above it, and the mean over the sphere, for indefinite H."""
    rng = np.random.default_rng(140)
    for d in (2, 3, 5):
        h, rho = np.append(rng.uniform(-2, 4, d - 1), 4.0), float(rng.uniform(0.1, 2))
        Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        H = Q @ np.diag(h) @ Q.T

        def rise(e: Array, H: Array = H) -> Array:
            return np.asarray(np.sum(e * (e @ H), axis=-1) / 2)

        np.testing.assert_allclose(rise(rho * direction(H)), worst(rho, h), rtol=1e-12)
        e = rng.standard_normal((400_000, d))
        e *= rho / np.linalg.norm(e, axis=1, keepdims=True)
        assert rise(e * rng.uniform(0, 1, (len(e), 1))).max() <= worst(rho, h)
        spread = rise(e).std() / np.sqrt(len(e))
        assert abs(rise(e).mean() - average(rho, h)) < 5 * spread


@mutation("the factor need not be undone in the second layer", undo=lambda a: 1.0)
@mutation("the Hessian stays what it is", moved=lambda H, t: H)
@mutation("the top eigenvalue grows like a^4", power=4)
def test_cex_relu_rescaling_sharpness(
    undo: Callable[[float], float] = lambda a: 1 / a,
    moved: Callable[[Array, Array], Array] = lambda H, t: H / np.outer(t, t),
    power: int = 2,
) -> None:
    """Loss, Hessian and the lower bound for a small classifier and its twins."""
    rng = np.random.default_rng(141)
    net = Network((3, 5, 4), "relu", bias=False)
    w, x, y = net.random_weights(rng), rng.standard_normal((12, 3)), rng.integers(0, 4, 12)
    H = curvature.hessian(net, w, x, y)
    second = np.linalg.eigvalsh(H[15:, 15:]).max()
    for a in (0.2, 5.0, 20.0):
        t = np.repeat([a, undo(a)], [15, 20])
        np.testing.assert_allclose(net.value(t * w, x, y), net.value(w, x, y), rtol=1e-12)
        twin = curvature.hessian(net, t * w, x, y)
        assert relative(moved(H, t), twin) < 1e-12
        assert np.linalg.eigvalsh(twin).max() >= a**power * second * (1 - 1e-9)


@mutation("the round ball does not see rescaling", reach=lambda w: np.ones_like(w))
@mutation("random neighbors may be drawn from the round ball", scatter=lambda w: np.ones_like(w))
def test_prop_relative_ball(
    reach: Callable[[Array], Array] = np.abs, scatter: Callable[[Array], Array] = lambda w: w
) -> None:
    """Highest and mean loss over the relative balls around a deep scalar network and its twins."""
    rng = np.random.default_rng(142)

    def loss(w: Array) -> Array:
        return (np.prod(w, axis=-1) - 0.7) ** 2

    corners = rng.standard_normal((20_000, 4))
    corners *= rng.uniform(0, 1, (len(corners), 1)) / np.linalg.norm(corners, axis=1, keepdims=True)
    corners = np.vstack([corners, -corners, corners * [1, -1, 1, -1]])
    for _ in range(10):
        w, t = rng.standard_normal(4), np.exp(rng.standard_normal(4))
        t[-1] = 1 / np.prod(t[:-1])
        t *= [-1, -1, 1, 1]
        values = [loss(v + 0.2 * reach(v) * corners * np.sign(v)) for v in (w, t * w)]
        np.testing.assert_allclose(values[1].max(), values[0].max(), rtol=1e-10)
        means = [loss(v + 0.2 * scatter(v) * corners).mean() for v in (w, t * w)]
        np.testing.assert_allclose(means[1], means[0], rtol=1e-10)
