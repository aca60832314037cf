"""Part 1, the ravine: step limits, the best step, preconditioned curvature, which minima can hold; with mutations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import stability
from llqr_sam_ref.exact._arrays import Array
from tests.exact.relaxed import random_spd
from tests.theorems.catalogue import mutation


@mutation("the edge is 2 whatever the momentum", edge=lambda beta: 2.0)
@mutation("slightly negative curvature is stable too", low=-0.3)
def test_thm_heavy_ball_edge(
    edge: Callable[[float], float] = lambda beta: stability.step_limit(1.0, beta), low: float = 0.0
) -> None:
    """The recursion's spectral radius is below one exactly between the edges, on a grid of eta h and beta."""
    wrong = 0
    for beta in np.linspace(0, 0.95, 20):
        for ah in np.linspace(-0.5, 4.3, 97) + 1e-3:
            companion = np.array([[1 + beta - ah, -beta], [1.0, 0.0]])
            stable = float(np.abs(np.linalg.eigvals(companion)).max()) < 1
            wrong += stable != (low < ah < edge(float(beta)))
    assert wrong == 0


@mutation("the best step is 1/h_max", step=lambda high, low: 1 / high)
@mutation("the rate is 1 - 1/kappa", rate=lambda kappa: 1 - 1 / kappa)
@mutation(
    "the best step is 1/h_max, and 1 - 1/kappa its rate",
    step=lambda high, low: 1 / high,
    rate=lambda kappa: 1 - 1 / kappa,
)
@mutation("the best step is half the limit", share=lambda kappa: 0.5)
def test_thm_best_step(
    step: Callable[[float, float], float] = lambda high, low: 2 / (high + low),
    rate: Callable[[float], float] = lambda kappa: (kappa - 1) / (kappa + 1),
    share: Callable[[float], float] = lambda kappa: kappa / (kappa + 1),
) -> None:
    """Rate of the stated step on random spectra; every other step on a grid is slower."""
    rng = np.random.default_rng(120)
    for _ in range(40):
        h = rng.uniform(0.1, 10, int(rng.integers(2, 7)))
        high, low = float(h.max()), float(h.min())
        best = step(high, low)
        slowest = np.abs(1 - best * h).max()
        np.testing.assert_allclose(slowest, rate(high / low), rtol=1e-12)
        others = best * np.concatenate([np.linspace(0.01, 0.999, 200), np.linspace(1.001, 3, 200)])
        assert np.abs(1 - others[:, None] * h).max(axis=1).min() > slowest
        np.testing.assert_allclose(best / stability.step_limit(high), share(high / low), rtol=1e-12)


def _root(U: Array, power: float = 0.5) -> Array:
    values, axes = np.linalg.eigh(U)
    return np.asarray(axes * values**power @ axes.T)


@mutation("the eigenvalues are those of U H U", similar=lambda U, H: U @ H @ U)
@mutation("U removes negative curvature", negative=lambda H: 0)
@mutation("the coordinates are U^{1/2} w", coordinates=lambda U, w: _root(U) @ w)
def test_prop_preconditioned_curvature(
    similar: Callable[[Array, Array], Array] = lambda U, H: _root(U) @ H @ _root(U),
    negative: Callable[[Array], int] = lambda H: int(np.sum(np.linalg.eigvalsh(H) < 0)),
    coordinates: Callable[[Array, Array], Array] = lambda U, w: _root(U, -0.5) @ w,
) -> None:
    """Spectra, signs, and five steps of both iterations, for indefinite H."""
    rng = np.random.default_rng(121)
    for _ in range(30):
        d = int(rng.integers(2, 7))
        U, H = random_spd(rng, d), rng.standard_normal((d, d))
        H = H + H.T
        spectrum = np.sort_complex(np.linalg.eigvals(U @ H))
        scale = np.abs(spectrum).max()
        np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(similar(U, H)), rtol=0, atol=1e-10 * scale)
        assert np.sum(spectrum.real < 0) == negative(H)
        w, eta = rng.standard_normal(d), 0.1 / scale
        z, change = coordinates(U, w), _root(U) @ H @ _root(U)
        for _ in range(5):
            w, z = w - eta * U @ (H @ w), z - eta * change @ z
        np.testing.assert_allclose(coordinates(U, w), z, rtol=1e-10, atol=1e-12)


class _Basin:
    """L = w^T H w/2 + sum (b_k . w)^3/6: a minimum at 0 with Hessian H, not quadratic around it."""

    def __init__(self, rng: np.random.Generator, h: Array) -> None:
        self.Q, self.b = (
            np.linalg.qr(rng.standard_normal((len(h), len(h))))[0],
            rng.standard_normal((3, len(h))),
        )
        self.H = self.Q @ np.diag(h) @ self.Q.T

    def descend(self, eta: float, w: Array, steps: int, radius: float) -> float:
        """The distance from the minimum after so many steps, or when it first exceeds the radius."""
        for _ in range(steps):
            w = w - eta * (self.H @ w + self.b.T @ (self.b @ w) ** 2 / 2)
            if np.linalg.norm(w) > radius:
                break
        return float(np.linalg.norm(w))


@mutation("minima hold up to curvature 1/eta only", limit=lambda h: 1 / h)
@mutation("minima hold up to curvature 4/eta", limit=lambda h: 4 / h)
def test_prop_stable_minima(limit: Callable[[float], float] = stability.step_limit) -> None:
    """Two percent above the limit every start of the cone leaves, a flat direction or not; two below, all arrive."""
    rng = np.random.default_rng(122)
    for case in range(10):
        h = np.sort(rng.uniform(0.5, 4, 4))[::-1] * [1.3, 1, 1, 1]
        edge = limit(float(h[0]))
        basin = _Basin(rng, h)
        start = basin.Q @ rng.uniform(-1, 1, 4)
        assert basin.descend(0.98 * edge, 1e-4 * start, 3000, 1e-2) < 1e-12
        h[3] = 0.0 if case % 2 else h[3]
        basin = _Basin(rng, h)
        rest = rng.standard_normal(3)
        start = basin.Q @ np.append(1.0, rest / np.linalg.norm(rest))
        assert basin.descend(1.02 * edge, 1e-7 * start, 3000, 1e-3) > 1e-3
