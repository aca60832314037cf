"""Part 4, the clock of a learned preconditioner: travel, memory, units and the bill, with mutations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llqr_sam_ref.config import ClosedForm, LLQRConfig
from llqr_sam_ref.exact import clock, curvature_estimate, llqr, relaxation
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.bases import FLOOR, iterated_basis
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from tests.exact.numerical import relative
from tests.exact.relaxed import random_spd
from tests.theorems.catalogue import mutation


def _clipped_travel(gradients: list[Array], rate: float, clip: float, beta: float) -> float:
    """Distance that heavy ball covers when it is fed these gradients, each clipped."""
    velocity = position = np.zeros_like(gradients[0])
    for gradient in gradients:
        velocity = beta * velocity + relaxation.clip_array(gradient, clip)
        position = position - rate * velocity
    return float(np.linalg.norm(position))


@mutation("momentum is forgotten", budget=lambda steps, rate, clip, beta: rate * clip * steps)
def test_thm_travel_budget(budget: Callable[..., float] = clock.travel_budget) -> None:
    assert abs(budget(50, 1e-3, 5.0, 0.9) - 2.0523192) < 1e-7
    assert abs(budget(25, 5e-3, 5.0, 0.9) - 4.162) < 1e-3
    rng = np.random.default_rng(450)
    limit = budget(50, 1e-3, 5.0, 0.9)
    for _ in range(20):
        gradients = [10.0 ** rng.uniform(-1, 3) * rng.standard_normal(7) for _ in range(50)]
        assert _clipped_travel(gradients, 1e-3, 5.0, 0.9) <= limit * (1 + 1e-12)
    constant = [np.full(4, 100.0)] * 50
    assert abs(_clipped_travel(constant, 1e-3, 5.0, 0.9) / limit - 1) < 1e-12
    assert abs(79 * (1 - 0.95) * limit - 8.107) < 1e-3


def _contraction(gamma: float, q: float) -> float:
    return 1 - (1 - gamma) * (1 - q)


@mutation("a refit shrinks the error by gamma", factor=lambda gamma, q: gamma)
def test_thm_ema_relaxed_step(factor: Callable[[float, float], float] = _contraction) -> None:
    """Warm-started refits and a moving average: contraction, and the variance left of noisy refits."""
    old = identity_preconditioner([[(3, 2)]], "kronecker")
    rng = np.random.default_rng(451)
    target = {name: rng.standard_normal(array.shape) for name, array in old.blocks[0].arrays.items()}

    def distance(U: Preconditioner) -> float:
        arrays = U.blocks[0].arrays
        return float(np.sqrt(sum(np.sum((arrays[name] - target[name]) ** 2) for name in target)))

    gamma, q, U = 0.9, 0.3, old
    for _ in range(39):
        learned = U.with_arrays([
            {name: target[name] + q * (array - target[name]) for name, array in U.blocks[0].arrays.items()}
        ])
        moved = relaxation.average(U, learned, gamma)
        assert abs(distance(moved) / distance(U) / factor(gamma, q) - 1) < 1e-9
        U = moved
    for q, expected in ((0.0, (1 - 0.95) / (1 + 0.95)), (0.9, None)):
        b = (1 - 0.95) * (1 - q)
        variance = b**2 / (1 - (1 - b) ** 2)
        if expected is not None:
            assert abs(variance - expected) < 1e-15
        u, samples = np.zeros(4000), []
        for t in range(int(12 / b)):
            u = 0.95 * u + 0.05 * (q * u + (1 - q) * rng.standard_normal(4000))
            if t > 6 / b:
                samples.append(np.mean(u**2))
        assert np.mean(samples) == pytest.approx(variance, rel=0.03)


def _move(t: float, rate: float, steps: int = 20) -> Array:
    """How far a Kronecker U travels in an unclipped inner run at gradient t g."""
    rng = np.random.default_rng(452)
    U = identity_preconditioner([[(3, 4)]], "kronecker")
    root = rng.standard_normal((12, 12))
    g = t * rng.standard_normal(12) / np.sqrt(12)
    grown = relaxation.inner_loop(U, g, root @ root.T / 12, steps=steps, eta_U=rate, beta=0.9, clip=None)
    pairs = zip(grown.blocks[0].arrays.values(), U.blocks[0].arrays.values(), strict=True)
    return np.concatenate([(a - b).ravel() for a, b in pairs])


@mutation("the rate scales with t", scaled=lambda t, rate: t * rate)
def test_thm_starvation_scaling(
    scaled: Callable[[float, float], float] = lambda t, rate: t * t * rate,
) -> None:
    """A run at gradient t g with rate a is the run at g with rate a t^2; small gradients move U like t^2."""
    for t in (1.0, 0.3, 0.1, 0.03):
        here, there = _move(t, 0.02), _move(1.0, scaled(t, 0.02))
        assert np.linalg.norm(here - there) <= 1e-10 * np.linalg.norm(there)
    ratio = np.linalg.norm(_move(0.1, 0.02)) / np.linalg.norm(_move(0.03, 0.02))
    assert abs(np.log(ratio) / np.log(0.1 / 0.03) - 2) < 0.02


class _LinearNetwork:
    """N square dense layers that count their matrix products; tanh between them costs nothing here."""

    def __init__(self, depth: int, rng: np.random.Generator) -> None:
        self.W = [rng.standard_normal((5, 5)) / np.sqrt(5) for _ in range(depth)]
        self.x, self.y = rng.standard_normal((7, 5)), rng.standard_normal((7, 5))
        self.products = 0

    def times(self, a: Array, b: Array) -> Array:
        self.products += 1
        return a @ b

    def forward(self) -> tuple[list[Array], list[Array]]:
        """States before each layer and pre-activations."""
        states, before = [self.x], []
        for i, W in enumerate(self.W):
            before.append(self.times(states[-1], W))
            states.append(np.tanh(before[-1]) if i + 1 < len(self.W) else before[-1])
        return states, before

    def gradient(self, states: list[Array]) -> tuple[list[Array], list[Array]]:
        """Gradients by weights, and costates of the pre-activations, of half the squared error."""
        costate, parts, costates = states[-1] - self.y, [], []
        for i in reversed(range(len(self.W))):
            costates.append(costate)
            parts.append(self.times(states[i].T, costate))
            if i:
                costate = self.times(costate, self.W[i].T) * (1 - states[i] ** 2)
        return parts[::-1], costates[::-1]

    def product(self, V: list[Array], states: list[Array], costates: list[Array] | None) -> list[Array]:
        """Gauss-Newton product, or with costates the Hessian product; forward states are reused."""
        N = len(self.W)
        dz = [self.times(states[0], V[0])]
        dx = [np.zeros_like(self.x)]
        for i in range(1, N):
            dx.append(dz[-1] * (1 - states[i] ** 2))
            dz.append(self.times(states[i], V[i]) + self.times(dx[i], self.W[i]))
        change, parts = dz[-1], []
        for i in reversed(range(N)):
            part = self.times(states[i].T, change)
            if i:
                back = self.times(change, self.W[i].T)
                if costates is not None:
                    part = part + self.times(dx[i].T, costates[i])
                    back = back + self.times(costates[i], V[i].T)
                    pulled = costates[i] @ self.W[i].T  # known from the gradient: not counted
                    bend = -2 * states[i] * dx[i] * pulled
                else:
                    bend = 0.0
                change = back * (1 - states[i] ** 2) + bend
            parts.append(part)
        return parts[::-1]


def _counts(depth: int) -> tuple[int, int]:
    return 4 * depth - 2, 6 * depth - 4


@mutation("a Hessian product costs 6N", counts=lambda depth: (4 * depth - 2, 6 * depth))
@mutation("forward and backward cost 2N", passes=lambda depth: (0, 2 * depth))
@mutation("a Hessian product needs no costates", whole=False)
@mutation("the ratios tend to 3/2 and 3", limits=(1.5, 3.0))
@mutation("a refit is free", share=0.0)
def test_prop_product_cost(
    counts: Callable[[int], tuple[int, int]] = _counts,
    passes: Callable[[int], tuple[int, int]] = lambda depth: (depth, 3 * depth - 1),
    whole: bool = True,
    limits: tuple[float, float] = (4 / 3, 2.0),
    share: float = 0.0667,
) -> None:
    rng = np.random.default_rng(453)
    for depth in (1, 2, 5, 20):
        net = _LinearNetwork(depth, rng)
        states, _ = net.forward()
        assert net.products == passes(depth)[0]
        _, costates = net.gradient(states)
        assert net.products == passes(depth)[1]
        V = [rng.standard_normal((5, 5)) for _ in net.W]
        spent = net.products
        net.product(V, states, None)
        gauss_newton = net.products - spent
        Hv = net.product(V, states, costates if whole else None)
        assert (gauss_newton, net.products - spent - gauss_newton) == counts(depth)
        # what was counted is the Hessian product: complex step through the gradient
        moved = _LinearNetwork(depth, rng)
        moved.x, moved.y = net.x, net.y
        moved.W = [W + 1e-30j * v for W, v in zip(net.W, V, strict=True)]
        exact = [part.imag / 1e-30 for part in moved.gradient(moved.forward()[0])[0]]
        for a, b in zip(Hv, exact, strict=True):
            assert np.linalg.norm(a - b) <= 1e-11 * max(1.0, float(np.linalg.norm(b)))
    gauss_newton, hessian = _counts(20)
    assert limits[0] - 0.02 < gauss_newton / (3 * 20 - 1) < limits[0]
    assert limits[1] - 0.04 < hessian / (3 * 20 - 1) < limits[1]
    assert abs(clock.overhead(50, 1000) - share) < 1e-4


def _settled(tau: float, noise: float, walk: float, drift: float) -> float:
    """Mean squared error of the average after 4000 steps of its own two moments, mean and variance."""
    a, mean, variance = 1 / tau, 0.0, 0.0
    for _ in range(4000):
        mean = (1 - a) * (mean - drift)
        variance = (1 - a) ** 2 * (variance + walk**2) + a**2 * noise**2
    return mean**2 + variance


@mutation(
    "the error of a memory that counts noise only",
    error=lambda tau, noise, walk, drift: noise**2 / (2 * tau - 1),
)
@mutation(
    "the best memory is twice as long", best_of=lambda *given, **named: 2 * clock.best_memory(*given, **named)
)
def test_thm_memory_optimum(
    error: Callable[..., float] = clock.averaging_error,
    best_of: Callable[..., float] = clock.best_memory,
) -> None:
    """What an average of noisy samples of a moving truth settles at, and the memory that makes it least."""
    for tau, noise, walk, drift in (
        (1.0, 1.0, 0.3, 0.1),
        (5.0, 1.0, 0.2, 0.0),
        (20.0, 2.0, 0.0, 0.05),
        (90.0, 1.0, 0.1, 0.02),
    ):
        assert error(tau, noise, walk, drift) == pytest.approx(_settled(tau, noise, walk, drift), rel=1e-9)
    rng = np.random.default_rng(454)
    tau, noise, walk, drift = 8.0, 1.0, 0.25, 0.03
    truth, average, squares = np.zeros(20000), np.zeros(20000), []
    for t in range(160):
        truth = truth + drift + walk * rng.standard_normal(20000)
        average = average + (truth + noise * rng.standard_normal(20000) - average) / tau
        if t >= 80:
            squares.append(np.mean((average - truth) ** 2))
    assert np.mean(squares) == pytest.approx(error(tau, noise, walk, drift), rel=0.02)
    for noise, walk, drift in ((1.0, 0.2, 0.0), (1.0, 0.0, 0.02), (3.0, 0.1, 0.05), (1e-3, 1.0, 1.0)):
        best = best_of(noise, walk, drift)
        assert (best - 1) * (walk**2 * best + drift**2 * (2 * best - 1) ** 2) == pytest.approx(
            noise**2, rel=1e-9
        )
        least = error(best, noise, walk, drift)
        assert all(error(1 + (best - 1) * f, noise, walk, drift) > least for f in (0.5, 0.9, 1.1, 2.0))
    assert best_of(1.0, walk=0.2) == pytest.approx(0.5 + np.sqrt(0.25 + 25), rel=1e-12)
    best = best_of(1.0, walk=0.2)
    assert error(best, 1.0, 0.2, 0.0) == pytest.approx((best - 1) * 0.04, rel=1e-12)
    assert best_of(1.0, drift=1e-6) / 5e5 ** (2 / 3) == pytest.approx(1, abs=1e-3)


SCALES = np.array([1.0, 2.0**-4, 2.0**2, 2.0**-3])  # near enough for the floor of the step to be rounding
LAYERS = [[(4, 3), (4,)], [(2, 4), (2,)]]
PARTS = np.repeat(np.arange(4), [12, 4, 8, 2])


def _steps(config: LLQRConfig, scales: Array, rho: float = 0.1) -> tuple[Array, Array]:
    """The weights after 25 steps of LLQR+SAM whose tensors' gradients are rescaled, and the shares of the last U g."""
    rng = np.random.default_rng(455)
    H = random_spd(rng, 26)
    noise = rng.standard_normal((25, 26))
    state = llqr.start(config, rng.standard_normal(26), LAYERS)

    def gradient(xi: Array, w: Array) -> Array:
        return scales[PARTS] * (H @ w + xi)

    for xi in noise:
        state = llqr.training_step(config, state, partial(gradient, xi), 0.05, rho=rho)
    Ug = state.U.apply(gradient(noise[0], state.w))
    return state.w, np.array([np.linalg.norm(Ug[i == PARTS]) for i in range(4)])


@mutation(
    "one damping and one length for all tensors",
    config=LLQRConfig(solver=ClosedForm(damping_kind="relative"), step_rule="rms"),
)
def test_thm_own_units(config: LLQRConfig = LLQRConfig()) -> None:
    """With units and lengths of each tensor, rescaling its gradients changes no step; U g weighs tensors as g does."""
    plain, share = _steps(config, np.ones(4), rho=0.0)
    rescaled, shares = _steps(config, SCALES, rho=0.0)
    assert relative(rescaled, plain) < 1e-10
    assert relative(shares, SCALES * share) < 1e-10
    for loss in (2.0**-30, 1e3):  # the whole loss in other units: the perturbation stays as well
        assert relative(_steps(config, np.full(4, loss))[0], _steps(config, np.ones(4))[0]) < 1e-9
    raw = LLQRConfig(solver=ClosedForm(damping=1e-30, damping_kind="absolute"), step_rule="rms-per-tensor")
    _, before = _steps(raw, np.ones(4), rho=0.0)
    _, after = _steps(raw, SCALES, rho=0.0)
    assert relative(after * SCALES, before) < 1e-6  # the raw 1/c weighs them the other way around
    S, eps = np.repeat([1.0, 1e-12], [12, 3]), np.finfo(np.float64).eps
    step = llqr.step_rule("rms-per-tensor", S, S, ((4, 3), (3,)))  # rounding stays small
    assert relative(step, np.repeat([1.0, (1 + eps * 1e24) ** -0.5], [12, 3])) < 1e-15


def _eigenvalue_range(size: int, delta: float) -> tuple[float, float]:
    return 1 / (size + delta), 1 / delta


@mutation("the mean is the largest curvature", bounds=lambda size, delta: (1 / (1 + delta), 1 / delta))
def test_prop_relative_damping(
    bounds: Callable[[int, float], tuple[float, float]] = _eigenvalue_range,
) -> None:
    """In its own units a tensor's U lies between 1/(n + delta) and 1/delta, with harmonic mean 1/(1 + delta)."""
    rng = np.random.default_rng(456)

    def entries(c: Array, delta: float) -> Array:
        estimate = curvature_estimate.no_curvature([c.shape], "ekfac")
        known = replace(estimate, estimates=(replace(estimate.estimates[0], c=c),), refits=1)
        block = curvature_estimate.minimizer(curvature_estimate.in_own_units(known), delta).blocks[0]
        return np.sort(np.linalg.eigvalsh(block.to_dense()))

    for delta in (1e-3, 0.1, 10.0):
        for _ in range(5):
            c = 10.0 ** rng.uniform(-12, 3, (5, 7))
            u = entries(c, delta)
            low, high = bounds(35, delta)
            assert low * (1 - 1e-12) <= u[0] <= u[-1] <= high * (1 + 1e-12)
            assert u[-1] / u[0] <= 1 + 35 / delta + 1e-9
            assert 1 / np.mean(1 / u) == pytest.approx(1 / (1 + delta), rel=1e-9)
        one = np.zeros((5, 7))
        one[2, 3] = 1e-8  # all curvature in one direction: both ends are attained
        u = entries(one, delta)
        assert np.allclose(u[[0, 1, -1]], [bounds(35, delta)[0], 1 / delta, 1 / delta], rtol=1e-12)
    c = rng.uniform(0.1, 2, (5, 7))
    own = c / c.mean()
    assert np.max(np.abs(1e6 * entries(c, 1e6) - 1)) <= 35 / (35 + 1e6)
    assert relative(entries(c, 1e-9), np.sort((1 / own).ravel())) < 1e-7
    c[0, 0] = 0.0  # a direction without curvature takes all, as the damping vanishes
    assert relative(1e-9 * entries(c, 1e-9), np.eye(35)[-1]) < 1e-7


def _angle(basis: Array, vectors: Array, i: int) -> float:
    """The tangent of the largest angle between the first i columns of a basis and those of another."""
    inside, outside = vectors[:, :i].T @ basis[:, :i], vectors[:, i:].T @ basis[:, :i]
    return float(np.linalg.norm(outside @ np.linalg.inv(inside), 2))


@mutation("without the floor", floor=0.0)
def test_thm_orthogonal_iteration(floor: float = FLOOR) -> None:
    """One renewal brings the leading directions nearer by (lambda_(i+1) + r)/(lambda_i + r); in a plane exactly."""
    rng = np.random.default_rng(457)
    for _ in range(20):
        values = np.sort(10.0 ** rng.uniform(-2, 1, 6))[::-1]
        vectors = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        gram, r = vectors * values @ vectors.T, floor * values.mean()
        basis = np.linalg.qr(vectors + 0.02 * rng.standard_normal((6, 6)))[0]
        old = basis[:, np.argsort(-np.sum(basis * (gram @ basis), axis=0))]
        new = iterated_basis(gram, old)
        assert new is not None
        for i in range(1, 6):
            factor = (values[i] + r) / (values[i - 1] + r)
            assert _angle(new, vectors, i) <= factor * _angle(old, vectors, i) * (1 + 1e-9)
    for degrees, values in ((30.0, np.array([3.0, 1.0])), (1.0, np.array([1.0, 1e-3]))):
        angle, r = np.radians(degrees), floor * values.mean()
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        new = iterated_basis(np.diag(values), turned)
        assert new is not None
        assert _angle(new, np.eye(2), 1) / np.tan(angle) == pytest.approx(
            (values[1] + r) / (values[0] + r), rel=1e-9
        )
    gram = random_spd(rng, 6)
    basis = np.eye(6)
    for _ in range(3000):
        new = iterated_basis(gram, basis)
        assert new is not None
        basis = new
    wanted = np.linalg.eigh(gram)[1]
    overlap = np.sort(np.abs(wanted.T @ basis), axis=0)  # the eigenvectors, in places and signs of their own
    assert np.max(np.abs(overlap[-1] - 1)) < 1e-9
    same = iterated_basis(gram, wanted)
    assert same is not None
    assert relative(same, wanted) < 1e-9
