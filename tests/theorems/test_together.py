"""Part 5, LLQR+SAM: the theorems of the chapter on potholes, each with the mutation that its test must catch.

Letters as in the book: U the slow preconditioner, H and h the curvature here and now, h-bar the believed one,
mu the damping, chi = U h the contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import dynamics, geometry, landscapes, stability
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation

LimitRule = Callable[..., float]


def _random_spd(rng: np.random.Generator, d: int, spread: float = 2.0) -> Array:
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (Q * 10.0 ** rng.uniform(-spread / 2, spread / 2, d)) @ Q.T


def _square_root(U: Array) -> Array:
    values, vectors = np.linalg.eigh(U)
    return (vectors * np.sqrt(values)) @ vectors.T


def _metric_length(U: Array, g: Array) -> float:
    return float(np.sqrt(g @ U @ g))


@mutation("the perturbation is normalized by |U g| instead", length=lambda U, g: float(np.linalg.norm(U @ g)))
def test_thm_frozen_metric_is_sam(length: Callable[[Array, Array], float] = _metric_length) -> None:
    """50 steps with momentum and decay on a non-quadratic loss: LLQR+SAM in w is SAM in y, w = U^(1/2) y."""
    rng = np.random.default_rng(501)
    d, eta, rho, beta, wd = 5, 0.05, 0.3, 0.9, 0.02
    U, a = _random_spd(rng, d), rng.standard_normal((d, d))
    root = _square_root(U)

    def gradient(w: Array) -> Array:
        return a.T @ np.tanh(a @ w) + 0.3 * w**3  # of sum log cosh(a w) + 0.075 sum w^4

    y = rng.standard_normal(d)
    w = root @ y
    velocity_w, velocity_y = np.zeros(d), np.zeros(d)
    for _ in range(50):
        g = gradient(w)
        step_w = U @ gradient(w + rho * U @ g / length(U, g)) + wd * w
        g_y = root @ gradient(root @ y)
        step_y = root @ gradient(root @ (y + rho * g_y / np.linalg.norm(g_y))) + wd * y
        velocity_w, velocity_y = beta * velocity_w + step_w, beta * velocity_y + step_y
        w, y = w - eta * velocity_w, y - eta * velocity_y
    assert np.linalg.norm(w - root @ y) <= 1e-11 * np.linalg.norm(w)


@mutation("U scaled by c scales the metric step by c", scaling=lambda c: c)
@mutation("the ratio is that of the lengths", ratio=lambda U, g: np.linalg.norm(U @ g) / np.linalg.norm(g))
@mutation(
    "the ratio is ten times as large", ratio=lambda U, g: 10 * np.linalg.norm(U @ g) / np.sqrt(g @ U @ g)
)
@mutation("the Euclidean step is the metric one", one="dual")
def test_prop_norm_choice(
    scaling: Callable[[float], float] = lambda c: float(np.sqrt(c)),
    ratio: Callable[[Array, Array], float] = lambda U, g: float(np.linalg.norm(U @ g) / np.sqrt(g @ U @ g)),
    one: str = "euclidean",
) -> None:
    """Metric against Euclidean normalization: ratio, bounds on the ratio, and what scaling U does to each."""
    rng = np.random.default_rng(502)
    for _ in range(40):
        d, c, rho = int(rng.integers(2, 7)), float(rng.uniform(0.1, 30)), 0.2
        U, g = _random_spd(rng, d), rng.standard_normal(d)
        metric, scaled = geometry.Preconditioned(U), geometry.Preconditioned(c * U)
        dual = geometry.ascent_step(g, rho, metric, norm="dual")
        euclidean = geometry.ascent_step(g, rho, metric, norm=one)
        k = ratio(U, g)
        np.testing.assert_allclose(dual, k * euclidean, rtol=1e-12)
        values = np.linalg.eigvalsh(U)
        assert np.sqrt(values[0]) * (1 - 1e-12) <= k <= np.sqrt(values[-1]) * (1 + 1e-12)
        assert g @ euclidean <= rho * np.linalg.norm(g) * (1 + 1e-12)
        np.testing.assert_allclose(
            geometry.ascent_step(g, rho, scaled, norm="dual"), scaling(c) * dual, rtol=1e-12
        )
        np.testing.assert_allclose(
            geometry.ascent_step(g, rho, scaled, norm="euclidean"), euclidean, rtol=1e-12
        )


@mutation("the SAM part is amplified by the first power of U", power=1)
def test_thm_pothole_amplification(power: int = 2) -> None:
    """On a quadratic the SAM part of the update carries U squared, the gradient part U once."""
    rng = np.random.default_rng(503)
    for _ in range(20):
        d, eta, rho = 4, 0.01, 0.3
        h, U, x = rng.uniform(-3, 10, d), rng.uniform(0.2, 20, d), rng.standard_normal(d)
        bowl = landscapes.quadratic(np.diag(h))
        without = dynamics.step(dynamics.preconditioned_gd(eta, U), bowl, x) - x
        both = dynamics.step(dynamics.unnormalized_llqr_sam(eta, rho, U), bowl, x) - x
        plain = dynamics.step(dynamics.unnormalized_sam(eta, rho), bowl, x)
        plain_part = plain - dynamics.step(dynamics.gd(eta), bowl, x)
        np.testing.assert_allclose(both - without, U**power * plain_part, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(both - without, rho * U * h * without, rtol=1e-10, atol=1e-13)


def _critical_curvature(U: float, eta: float, rho: float) -> float:
    """The curvature at which |1 - eta U h (1 + rho U h)| reaches one, by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = 0.5 * (low + high)
        chi = U * middle
        low, high = (middle, high) if abs(1 - eta * chi * (1 + rho * chi)) < 1 else (low, middle)
    return 0.5 * (low + high)


@mutation("the limit does not know rho: 2/eta", limit=lambda eta, rho: 2 / eta)
def test_thm_pothole_contrast(limit: LimitRule = stability.contrast_limit) -> None:
    """The bottom is stable iff the contrast is below chi*: bisection, and runs just below and above it."""
    for eta in (0.01, 0.05, 0.2, 0.5):
        for rho, believed in ((0.05, 0.25), (0.4, 0.25), (1.0, 10.05), (3.0, 0.06)):
            U = 1 / believed
            edge = limit(eta, rho) * believed
            assert abs(_critical_curvature(U, eta, rho) / edge - 1) < 1e-10
            for factor, stable in ((0.99, True), (1.01, False)):
                hole = landscapes.quadratic(np.array([[factor * edge]]))
                method = dynamics.unnormalized_llqr_sam(eta, rho, np.array([U]))
                path = dynamics.trajectory(method, hole, np.array([1e-6]), 400)
                assert (abs(path[-1, 0]) < 1e-6) == stable
    radii = np.linspace(0.01, 5, 200)
    assert np.all(np.diff([limit(0.05, rho) for rho in radii]) < 0)
    assert abs(limit(0.05, 1e-9) * 0.05 - 2) < 1e-6
    assert abs(limit(0.05, 0.4) - 8.827822) < 1e-6


@mutation("without the condition eta (1 + rho) < 2", admitted=lambda eta, rho: True)
def test_cor_pothole_wide_basin(
    admitted: Callable[[float, float], bool] = lambda eta, rho: eta * (1 + rho) < 2,
) -> None:
    """No direction whose curvature does not exceed the believed one (contrast at most 1) is ever unstable."""
    chi = np.concatenate([10.0 ** np.linspace(-6, -0.01, 60), [1.0]])
    for eta in np.linspace(0.01, 1.9, 25):
        for rho in np.linspace(0.0, 3.0, 25):
            if admitted(eta, rho):
                multipliers = [stability.pothole_multiplier(c, 1.0, 0.0, eta, rho) for c in chi]
                assert np.max(np.abs(multipliers)) < 1
    # The condition is sharp: at contrast 1 with eta (1 + rho) = 2.07 the step overshoots.
    assert abs(stability.pothole_multiplier(1.0, 1.0, 0.0, 0.9, 1.3)) > 1.06


@mutation("a map that is not refreshed", refreshed=lambda H, mu: np.eye(len(H)) / mu)
def test_cor_pothole_slowness(
    refreshed: Callable[[Array, float], Array] = lambda H, mu: np.linalg.inv(H + mu * np.eye(len(H))),
) -> None:
    """With the local curvature in U every contrast is below one and no hole is unstable."""
    rng = np.random.default_rng(505)
    eta, rho, mu = 0.5, 1.0, 0.05
    for trial in range(50):
        H = _random_spd(rng, 4) * 10.0 ** (6 * trial / 49)
        UH = refreshed(H, mu) @ H
        step = np.eye(4) - eta * UH @ (np.eye(4) + rho * UH)
        assert np.max(np.abs(np.linalg.eigvals(step))) <= 1 + 1e-9


def _joint_curvature(U: Array, H: Array) -> Array:
    root = _square_root(U)
    return np.linalg.eigvalsh(root @ H @ root)


@mutation(
    "eigenvalues of H times the average of U's diagonal",
    curvature=lambda U, H: np.linalg.eigvalsh(H) * np.mean(np.diag(U)),
)
def test_thm_pothole_spd(curvature: Callable[[Array, Array], Array] = _joint_curvature) -> None:
    """Without any common eigenvectors the contrasts are the eigenvalues of U^(1/2) H U^(1/2)."""
    rng = np.random.default_rng(506)
    eta, rho = 0.05, 0.4
    limit = stability.contrast_limit(eta, rho)
    for trial in range(50):
        U, H = _random_spd(rng, 5), _random_spd(rng, 5)
        if trial % 2:  # an indefinite H keeps the similarity, not the stability statement
            H = H - 0.5 * np.trace(H) / 5 * np.eye(5)
        step = np.eye(5) - eta * U @ H @ (np.eye(5) + rho * U @ H)
        eigenvalues = np.linalg.eigvals(step)
        chi = curvature(U, H)
        scale = np.max(np.abs(eigenvalues))
        assert np.max(np.abs(eigenvalues.imag)) <= 1e-9 * scale
        predicted = np.sort(1 - eta * chi * (1 + rho * chi))
        np.testing.assert_allclose(np.sort(eigenvalues.real), predicted, rtol=0, atol=1e-9 * scale)
        if trial % 2 == 0:
            assert (np.max(np.abs(eigenvalues)) < 1) == (np.max(chi) < limit)


@mutation("momentum forgotten", limit=lambda eta, rho, beta: stability.contrast_limit(eta, rho, 0.0))
def test_thm_pothole_momentum(limit: LimitRule = stability.contrast_limit) -> None:
    """Heavy ball moves the limit to that of 2 (1 + beta): bisection on the spectral radius of the map."""
    for eta, rho in ((0.05, 0.4), (0.2, 0.1)):
        for beta in (0.0, 0.5, 0.9, 0.99):

            def radius(chi: float, eta: float = eta, rho: float = rho, beta: float = beta) -> float:
                pull = eta * chi * (1 + rho * chi)
                return float(np.max(np.abs(np.linalg.eigvals([[1 + beta - pull, -beta], [1.0, 0.0]]))))

            low, high = 1e-3, 1e4
            for _ in range(100):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if radius(middle) < 1 - 1e-13 else (low, middle)
            assert abs(limit(eta, rho, beta) / low - 1) < 1e-6


@mutation("the metric norm does not scale the radius", radius=lambda rho, U: rho)
def test_thm_pothole_normalised(
    radius: Callable[[float, float], float] = lambda rho, U: float(rho * np.sqrt(U)),
) -> None:
    """In one dimension both normalized forms end in a two-cycle; the metric norm's radius is rho sqrt(U)."""
    for U, h, eta, rho in (
        (4, 0.5, 0.1, 0.2),
        (4, 3, 0.1, 0.2),
        (0.1, 10, 0.5, 1),
        (20, 0.05, 0.5, 0.3),
        (2, 1, 0.8, 0.1),
    ):
        a = eta * U * h
        hole = landscapes.quadratic(np.array([[float(h)]]))
        for norm, end in (("euclidean", rho * a / (2 - a)), ("dual", radius(rho, U) * a / (2 - a))):
            method = dynamics.llqr_sam(eta, rho, np.array([float(U)]), norm=norm)
            starts = np.array([[0.013], [-0.4], [2.0], [7.7]])
            path = dynamics.trajectory(method, hole, starts, 3000)
            np.testing.assert_allclose(np.abs(path[-1]), end, rtol=1e-9)
            np.testing.assert_allclose(path[-1], -path[-2], rtol=1e-9)


def _outer_only(h: Array, U: float, rho: float) -> Array:
    return U * h * (1 + rho * h)


@mutation(
    "preconditioning the step only is the same as preconditioning both",
    outer_only=lambda h, U, rho: U * h * (1 + rho * U * h),
)
@mutation("with U = 1 it matters where U stands", U=1.0)
def test_prop_pothole_ablations(
    outer_only: Callable[[Array, float, float], Array] = _outer_only, U: float = 4.0
) -> None:
    """Four places for U, four limits: found by simulation and compared with the formulas."""
    eta, rho = 0.05, 0.4
    formulas: dict[str, Callable[[Array], Array]] = {
        "neither": lambda h: h * (1 + rho * h),
        "step": lambda h: outer_only(h, U, rho),
        "question": lambda h: h * (1 + rho * U * h),
        "both": lambda h: U * h * (1 + rho * U * h),
    }
    where = {"neither": (1.0, 1.0), "step": (1.0, U), "question": (U, 1.0), "both": (U, U)}
    edges = {}
    for name, formula in formulas.items():
        asked, stepped = where[name]
        h = np.geomspace(0.1, 50, 40001)
        x = np.full_like(h, 1e-6)
        for _ in range(3):  # the map is linear: its multiplier shows in one step, three guard the sign
            x = x - eta * stepped * h * (x + rho * asked * h * x)
        simulated = h[np.argmax(np.abs(x) > 1e-6)]
        predicted = h[np.argmax(eta * formula(h) >= 2)]
        assert abs(simulated / predicted - 1) < 0.01
        edges[name] = simulated
    assert edges["both"] < edges["step"] < edges["question"] < edges["neither"]
    np.testing.assert_allclose(
        [edges[k] for k in ("neither", "step", "question", "both")], [8.828, 3.904, 4.697, 2.207], rtol=5e-4
    )


@mutation("the map was right after all", U=5.0)
def test_cex_stale_preconditioner(U: float = 100.0) -> None:
    """An average that is too small throws the iterate out of an honest basin: contrast 20, multiplier -8."""
    h, eta, rho = 0.2, 0.05, 0.4
    multiplier = stability.pothole_multiplier(h, 1 / U, 0.0, eta, rho)
    method = dynamics.unnormalized_llqr_sam(eta, rho, np.array([U]))
    path = dynamics.trajectory(method, landscapes.quadratic(np.array([[h]])), np.array([1e-6]), 20)
    assert abs(multiplier + 8) < 1e-12
    assert np.max(np.abs(path)) > 1


@mutation("a radius below 1/(U |h|)", rho=0.2)
def test_thm_negative_curvature_attraction(rho: float = 0.4) -> None:
    """At curvature -|h| the point attracts iff 1 < rho U |h| < 1 + 2/(eta U |h|): example and both edges."""
    h, U, eta = 1.0, 4.0, 0.05
    assert abs(stability.pothole_multiplier(-h, 1 / U, 0.0, eta, rho) - 0.88) < 1e-12
    wrong = 0
    for h, U in ((1.0, 4.0), (0.3, 10.0), (5.0, 0.7)):
        for eta in (0.05, 0.2):
            q = U * h
            for edge, inside_above in ((1 / q, True), ((1 + 2 / (eta * q)) / q, False)):
                for factor in (0.98, 1.02):
                    method = dynamics.unnormalized_llqr_sam(eta, factor * edge, np.array([U]))
                    hill = landscapes.quadratic(np.array([[-h]]))
                    path = dynamics.trajectory(method, hill, np.array([1e-6]), 2000)
                    attracted = abs(path[-1, 0]) < 1e-6
                    wrong += attracted != ((factor > 1) == inside_above)
    assert wrong == 0
