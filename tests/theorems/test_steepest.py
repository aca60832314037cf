"""Part 1, the steepest step: balls that are not ellipses, toll and leash, divergences; each with its mutations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from llqr_sam_ref.exact import geometry, pnorms
from llqr_sam_ref.exact._arrays import Array
from tests.exact.relaxed import random_spd
from tests.theorems.catalogue import mutation

Step = Callable[[Array, float, float], Array]


def _exponent_q(g: Array, rho: float, p: float) -> Array:
    q = p / (p - 1) if p > 1 else np.inf
    return np.asarray(rho * np.sign(g) * np.abs(g) ** q / np.sum(np.abs(g) ** q) ** (1 / p))


def _one_coordinate(g: Array, rho: float, p: float) -> Array:
    return pnorms.pnorm_step(g, rho, 1)


@mutation("the exponent is q instead of q - 1", step=_exponent_q)
@mutation("the gain is the norm of g in the ball's own p", gain=lambda g, p: np.linalg.norm(g, p))
@mutation(
    "one coordinate takes all for every p",
    step=_one_coordinate,
    gain=lambda g, p: np.abs(g).max(),
)
@mutation("for p = infinity the step is g over its largest entry", corner=lambda g: g / np.abs(g).max())
@mutation("for p = 1 the gain is the mean slope", largest=lambda g: np.abs(g).mean())
def test_thm_steepest_ascent_pnorm(
    step: Step = pnorms.pnorm_step,
    gain: Callable[[Array, float], float | Array] = pnorms.dual_norm,
    corner: Callable[[Array], Array] = np.sign,
    largest: Callable[[Array], float] = lambda g: float(np.abs(g).max()),
) -> None:
    """Length, gain, and that every other point of the ball's surface gains less; both ends of the range."""
    rng = np.random.default_rng(110)
    for p in (1.25, 1.5, 2.0, 3.0, 8.0):
        for _ in range(40):
            d, rho = int(rng.integers(2, 7)), float(rng.uniform(0.05, 3))
            g = rng.standard_normal(d)
            e = step(g, rho, p)
            np.testing.assert_allclose(np.linalg.norm(e, p), rho, rtol=1e-12)
            np.testing.assert_allclose(g @ e, rho * gain(g, p), rtol=1e-12)
            rivals = rng.standard_normal((400, d))
            rivals *= rho / np.linalg.norm(rivals, p, axis=1, keepdims=True)
            assert np.max(rivals @ g) < g @ e
    for _ in range(40):
        g = rng.standard_normal(int(rng.integers(2, 7)))
        np.testing.assert_allclose(g @ corner(g), pnorms.dual_norm(g, np.inf), rtol=1e-12)
        np.testing.assert_allclose(g @ pnorms.pnorm_step(g, 1.0, 1), largest(g), rtol=1e-12)


@mutation("the largest entries need not be tied for p = 1", tied=lambda g: len(g) > 1)
@mutation("zeros do not matter for p = infinity", free=lambda g: False)
@mutation("the ties of the example are broken", example=(2.0, -1.0, 0.5))
def test_cex_pnorm_endpoints(
    tied: Callable[[Array], bool] = lambda g: int(np.sum(np.abs(g) == np.abs(g).max())) > 1,
    free: Callable[[Array], bool] = lambda g: bool(np.any(g == 0)),
    example: tuple[float, ...] = (2.0, -2.0, 0.0),
) -> None:
    """The vertices of both balls that reach the gain are counted, for slopes of small integers."""

    def best(g: Array, vertices: Array) -> int:
        return int(np.sum(vertices @ g == np.max(vertices @ g)))

    for entries in product((-2.0, -1.0, 0.0, 1.0, 2.0), repeat=3):
        g = np.array(entries)
        if not g.any():
            continue
        diamond, cube = np.vstack([np.eye(3), -np.eye(3)]), np.array(list(product((-1.0, 1.0), repeat=3)))
        assert (best(g, diamond) > 1) == tied(g)
        assert (best(g, cube) > 1) == free(g)
    g = np.array(example)
    points = np.array([[1.0, 0, 0], [0, -1, 0], [1, -1, 1], [1, -1, -1]])
    assert (points @ g).tolist() == [2, 2, 4, 4]


@mutation("the step is along g", step=lambda G, g, eta: -eta * g)
@mutation("the leash has the Euclidean length of eta g", radius=lambda G, g, eta: eta * np.linalg.norm(g))
def test_thm_penalty_trust_region(
    step: Callable[[Array, Array, float], Array] = lambda G, g, eta: -eta * np.linalg.solve(G, g),
    radius: Callable[[Array, Array, float], float] = lambda G, g, eta: (
        eta * float(np.sqrt(g @ np.linalg.solve(G, g)))
    ),
) -> None:
    """The toll's slope is zero at the step, and the leash of the stated length leads to the same step."""
    rng = np.random.default_rng(111)
    for _ in range(50):
        d, eta = int(rng.integers(2, 7)), float(rng.uniform(0.01, 2))
        G, g = random_spd(rng, d), rng.standard_normal(d)
        toll = step(G, g, eta)
        np.testing.assert_allclose(g + G @ toll / eta, 0, atol=1e-11)
        leash = geometry.ascent_step(-g, radius(G, g, eta), geometry.PositiveDefinite(G))
        np.testing.assert_allclose(leash, toll, rtol=1e-10, atol=1e-12)


class _Egg:
    """D(Delta) = sum a_i (e^Delta_i - 1 - Delta_i) + |Delta|^2/2, turned, and a loss that is not quadratic."""

    def __init__(self, rng: np.random.Generator, d: int) -> None:
        self.R, self.a = np.linalg.qr(rng.standard_normal((d, d)))[0], rng.uniform(0.5, 4, d)
        self.b, self.g = rng.standard_normal((d, d)), rng.standard_normal(d)
        self.G = self.R.T @ np.diag(self.a + 1) @ self.R

    def divergence(self, step: Array) -> tuple[float, Array, Array]:
        """D with its gradient and Hessian."""
        y = self.R @ step
        slope = self.R.T @ (self.a * np.expm1(y) + y)
        bend = self.R.T @ np.diag(self.a * np.exp(y) + 1) @ self.R
        return float(self.a @ (np.expm1(y) - y) + y @ y / 2), slope, bend

    def loss(self, step: Array) -> tuple[Array, Array]:
        """Gradient and Hessian of g . Delta + sum sin(b_k . Delta)^2/2."""
        y = self.b @ step
        return self.g + self.b.T @ np.sin(2 * y) / 2, self.b.T @ np.diag(np.cos(2 * y)) @ self.b

    def best(self, r: float) -> Array:
        """Newton on the optimality system: slope of L + nu slope of D = 0 and D = r^2/2, magnified by 1/r."""
        z = -np.linalg.solve(self.G, self.g)
        z, nu = z / np.sqrt(z @ self.G @ z), float(np.sqrt(self.g @ np.linalg.solve(self.G, self.g)))
        for _ in range(30):
            D, dD, ddD = self.divergence(r * z)
            dL, ddL = self.loss(r * z)
            residual = np.append(dL + nu * dD / r, D / r**2 - 0.5)
            system = np.block([
                [r * ddL + nu * ddD, dD[:, None] / r],
                [dD[None, :] / r, np.zeros((1, 1))],
            ])
            change = np.linalg.solve(system, residual)
            z, nu = z - change[:-1], nu - float(change[-1])
        return z


@mutation("the limit is steepest under the identity", limit=lambda G, g: -g / np.linalg.norm(g))
@mutation("the error is of second order", order=2)
def test_thm_divergence_limit(
    limit: Callable[[Array, Array], Array] = lambda G, g: (
        -np.linalg.solve(G, g) / np.sqrt(g @ np.linalg.solve(G, g))
    ),
    order: int = 1,
) -> None:
    """The constrained minimizer over its radius tends to the limit, ten times closer per decade."""
    rng = np.random.default_rng(112)
    for d in (2, 3, 4, 5, 5):
        egg = _Egg(rng, d)
        errors = [float(np.linalg.norm(egg.best(r) - limit(egg.G, egg.g))) for r in (1e-3, 1e-4)]
        assert errors[0] < 5e-3
        assert abs(errors[0] / errors[1] / 10**order - 1) < 0.05


def _along_Y(Y: Array, rho: float) -> Array:
    return np.asarray(rho * Y / np.linalg.norm(Y, 2))


def _first_pair(Y: Array, rho: float) -> Array:
    a, _, b = np.linalg.svd(Y)
    return np.asarray(rho * np.outer(a[:, 0], b[0]))


@mutation("the step has Frobenius length rho", step=lambda Y, rho: rho * Y / np.linalg.norm(Y))
@mutation("the step points along the gradient", step=_along_Y)
@mutation("only the first pair of singular vectors moves", step=_first_pair, gain=lambda y: y[0])
def test_prop_steepest_spectral(
    step: Callable[[Array, float], Array] = pnorms.spectral_step,
    gain: Callable[[Array], float | Array] = np.sum,
) -> None:
    """Largest singular value rho, gain rho times the sum of singular values, no rival gains more."""
    rng = np.random.default_rng(113)
    for rank in (1, 2, 3, 3):
        m, n, rho = int(rng.integers(3, 6)), int(rng.integers(3, 6)), float(rng.uniform(0.1, 2))
        Y = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
        E = step(Y, rho)
        np.testing.assert_allclose(np.linalg.norm(E, 2), rho, rtol=1e-12)
        np.testing.assert_allclose(np.sum(Y * E), rho * gain(np.linalg.svd(Y)[1]), rtol=1e-12)
        rivals = rng.standard_normal((400, m, n)) + 3 * pnorms.spectral_step(Y, 1.0)
        rivals *= rho / np.linalg.norm(rivals, 2, axis=(1, 2))[:, None, None]
        assert np.max(np.sum(rivals * Y, axis=(1, 2))) <= np.sum(Y * E) * (1 + 1e-12)
