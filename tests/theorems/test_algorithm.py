"""Part 5, the whole algorithm: what the base does to U and U to the base, each with its mutation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import dynamics, geometry, landscapes, llqr
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation


def _spd(rng: np.random.Generator, d: int) -> Array:
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (Q * 10.0 ** rng.uniform(-1, 1, d)) @ Q.T


def _times(U: Array, g: Array) -> Array:
    return U * g if U.ndim == 1 else U @ g


def _adam(
    U: Array, eps: Array, steps: int = 500, *, wd: float = 0.1, coupled: bool = False, seed: int = 600
) -> Array:
    """Noisy Adam fed with U g (a diagonal or a matrix), with decoupled decay or with decay added to U g."""
    rng = np.random.default_rng(seed)
    d = len(eps)
    H, w = np.diag(rng.uniform(0.5, 2, d)), rng.standard_normal(d)
    m, v = np.zeros(d), np.zeros(d)
    for t in range(1, steps + 1):
        g = H @ (w - 1) + 0.5 * rng.standard_normal(d)
        g = _times(U, g)
        g = g + wd * w if coupled else g
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        w = w - 0.01 * (step if coupled else step + wd * w)
    return w


@mutation("some signs of U are flipped", signs=np.array([1.0, -1.0, 1.0, -1.0, 1.0]))
def test_thm_adam_diagonal_invariance(signs: Array = np.ones(5)) -> None:
    u = signs * np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    for eps in (0.0, 1e-3):
        constant = np.full(5, eps)
        assert np.max(np.abs(_adam(u, constant) - _adam(np.ones(5), constant / np.abs(u)))) < 1e-10


@mutation("U is diagonal and the decay decoupled", mix=lambda U: np.diag(U), coupled=False)
def test_cex_adam_rotation(mix: Callable[[Array], Array] = lambda U: U, coupled: bool = True) -> None:
    """The two instances of the page, and that the paths stay apart."""

    def first(g: Array, w: Array, wd: float) -> Array:  # moments of one gradient, bias corrected
        seen = g + wd * w if coupled else g
        return -seen / np.abs(seen)

    g, U = np.array([3.0, -1.0]), np.array([[2.0, 1.0], [1.0, 2.0]])
    assert first(g, np.zeros(2), 0).tolist() == [-1, 1]
    assert first(_times(mix(U), g), np.zeros(2), 0).tolist() == [-1, -1]
    one, slope = np.ones(1), -np.ones(1)
    assert first(slope, one, 0.5) == -first(slope / 4, one, 0.5)
    U, none = _spd(np.random.default_rng(601), 5), np.zeros(5)
    plain = _adam(np.ones(5), none, 300)
    assert np.max(np.abs(_adam(mix(U), none, 300) - plain)) > 0.1
    u = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    coupled_plain = _adam(np.ones(5), none, 300, wd=0.5, coupled=coupled)
    assert np.max(np.abs(_adam(u, none, 300, wd=0.5, coupled=coupled) - coupled_plain)) > 0.1


@mutation("wd I in place of wd U^-1", weight=lambda U: np.eye(len(U)))
def test_thm_decay_after_preconditioning(weight: Callable[[Array], Array] = np.linalg.inv) -> None:
    rng = np.random.default_rng(602)
    for _ in range(10):
        H, U, target, wd = _spd(rng, 4), _spd(rng, 4), rng.standard_normal(4), 0.05
        eta = 1.0 / np.max(np.abs(np.linalg.eigvals(U @ H)))
        one_step = np.eye(5)  # w <- w - eta (U H (w - target) + wd w), as a map of (w, 1)
        one_step[:4, :4] -= eta * (U @ H + wd * np.eye(4))
        one_step[:4, 4] = eta * U @ H @ target
        w = np.linalg.matrix_power(one_step, 2**17)[:4, 4]  # started at zero
        end = np.linalg.solve(H + wd * weight(U), H @ target)
        assert np.linalg.norm(w - end) < 1e-9 * np.linalg.norm(end)
    for u, share in ((0.1, 2 / 3), (1.0, 1 / 1.05), (10.0, 1 / 1.005)):
        assert abs(1 / (1 + 0.05 / u) - share) < 1e-12


def _angle(c: float, eta_wd: float = 1e-3) -> float:
    """Angle per step of w <- w - eta (c g + wd w) at equilibrium, g orthogonal to w, |g| = gamma/|w|."""
    eta, gamma, w, e = 0.1, 0.7, np.array([1.0, 0.0]), 0.0
    for _ in range(12000):
        g = np.array([-w[1], w[0]]) / np.linalg.norm(w) * gamma / np.linalg.norm(w)
        new = w - eta * c * g - eta_wd * w
        e = float(np.arctan2(w[0] * new[1] - w[1] * new[0], w @ new))
        w = new
    return abs(e)


@mutation("the initial norm is kept", start=lambda c: 1.0)
def test_thm_scale_invariant_scalars(start: Callable[[float], float] = lambda c: float(np.sqrt(c))) -> None:
    rng = np.random.default_rng(603)
    a, w0 = rng.standard_normal((300, 5)), rng.standard_normal(5)

    def run(c: float, w: Array) -> Array:
        """Heavy ball on L_t(w) = a_t . w/|w|, which does not depend on the length of w."""
        m = np.zeros(5)
        for a_t in a:
            n = np.linalg.norm(w)
            g = (a_t - w * (a_t @ w) / n**2) / n
            m = 0.9 * m + c * g + 0.01 * w
            w = w - 0.02 * m
        return w

    c = 7.0
    moved = run(c, start(c) * w0)
    assert np.linalg.norm(moved / np.sqrt(c) - run(1.0, w0)) < 1e-9 * np.linalg.norm(w0)
    for scale in (0.1, 1.0, 10.0):
        assert abs(_angle(scale) / np.arccos(1 - 1e-3) - 1) < 1e-6


@mutation("U twice the identity", U=2 * np.ones(2))
def test_prop_llqr_sam_limits(U: Array = np.ones(2)) -> None:
    """U = I is SAM, rho = 0 is LLQR, both is the base: equal trajectories, momentum included."""
    banana, start = landscapes.banana(), np.array([1.5, 0.3])
    u = np.array([0.5, 3.0])
    for beta in (0.0, 0.9):
        pairs = [
            (dynamics.llqr_sam(0.01, 0.2, U, beta=beta), dynamics.sam(0.01, 0.2, beta=beta)),
            (dynamics.llqr_sam(0.01, 0.0, u, beta=beta), dynamics.preconditioned_gd(0.01, u, beta=beta)),
            (dynamics.llqr_sam(0.01, 0.0, U, beta=beta), dynamics.gd(0.01, beta=beta)),
        ]
        for left, right in pairs:
            a = dynamics.trajectory(left, banana, start, 60)
            b = dynamics.trajectory(right, banana, start, 60)
            np.testing.assert_allclose(a, b, rtol=1e-12)


def _radius(U: Array, M: Array) -> float:
    """The length of the RMS step in the metric U^{-1}, over the root of the number of weights."""
    return float(np.sqrt(M @ U @ M) / np.linalg.norm(U @ M))


@mutation("the radius is the same for every M", radius=lambda U, M: 1.0)
def test_prop_rms_steepest(radius: Callable[[Array, Array], float] = _radius) -> None:
    """Steepest in the largest of the tensors' U^{-1} lengths, with radii that M chooses; in no fixed norm."""
    rng = np.random.default_rng(604)
    sizes, shapes = (3, 5), ((3,), (5,))
    for _ in range(10):
        Us, Ms = [_spd(rng, d) for d in sizes], [rng.standard_normal(d) for d in sizes]
        S = llqr.step_rule("rms-per-tensor", np.concatenate([U @ M for U, M in zip(Us, Ms, strict=True)]),
                           np.concatenate(Ms), shapes)  # fmt: skip
        steps = np.split(S, [3])
        for U, M, step, d in zip(Us, Ms, steps, sizes, strict=True):
            r = np.sqrt(d) * radius(U, M)
            assert abs(np.sqrt(step @ np.linalg.solve(U, step)) / r - 1) < 1e-10
            dual = geometry.ascent_step(M, r, geometry.Preconditioned(U), norm="dual")
            assert np.linalg.norm(step - dual) < 1e-10 * np.linalg.norm(
                step
            )  # the steepest step of that radius
            tried = rng.standard_normal((200, d))
            lengths = np.sqrt(np.sum(tried * np.linalg.solve(U, tried.T).T, axis=1))
            assert np.max(tried @ M / lengths) * r <= M @ step * (1 + 1e-12)
            u = np.linalg.eigvalsh(U)
            assert u[-1] ** -0.5 <= radius(U, M) <= u[0] ** -0.5
            # what a norm's steepest direction is: the gradient of the dual norm, with a symmetric derivative
            turn = {"rms": lambda z, U=U: U @ z / np.sqrt((U @ z) @ (U @ z)),
                    "dual": lambda z, U=U: U @ z / np.sqrt(z @ U @ z)}  # fmt: skip
            for name, f in turn.items():
                columns = [f(M + 1e-30j * e).imag / 1e-30 for e in np.eye(d)]
                slope = np.stack(columns, axis=1)
                crooked = np.linalg.norm(slope - slope.T) / np.linalg.norm(slope)
                assert crooked < 1e-12 if name == "dual" else crooked > 1e-3
    U = np.diag([4.0, 0.25])
    assert abs(radius(U, np.ones(2)) - np.sqrt(4.25) / np.sqrt(16.0625)) < 1e-15
    assert [radius(U, e) for e in np.eye(2)] == [0.5, 2.0]
