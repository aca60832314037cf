"""Part 4, the clock of a learned preconditioner: travel, memory, starvation and the bill, with mutations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import clock, relaxation
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
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
def test_prop_product_cost(counts: Callable[[int], tuple[int, int]] = _counts) -> None:
    rng = np.random.default_rng(453)
    for depth in (1, 2, 5, 20):
        net = _LinearNetwork(depth, rng)
        states, _ = net.forward()
        assert net.products == depth
        _, costates = net.gradient(states)
        assert net.products == 3 * depth - 1
        V = [rng.standard_normal((5, 5)) for _ in net.W]
        spent = net.products
        net.product(V, states, None)
        gauss_newton = net.products - spent
        Hv = net.product(V, states, costates)
        assert (gauss_newton, net.products - spent - gauss_newton) == counts(depth)
        # what was counted is the Hessian product: complex step through the gradient
        moved = _LinearNetwork(depth, rng)
        moved.x, moved.y = net.x, net.y
        moved.W = [W + 1e-30j * v for W, v in zip(net.W, V, strict=True)]
        exact = [part.imag / 1e-30 for part in moved.gradient(moved.forward()[0])[0]]
        for a, b in zip(Hv, exact, strict=True):
            assert np.linalg.norm(a - b) <= 1e-11 * max(1.0, float(np.linalg.norm(b)))
    gauss_newton, hessian = _counts(20)
    assert 1.32 < gauss_newton / (3 * 20 - 1) < 4 / 3
    assert 1.96 < hessian / (3 * 20 - 1) < 2
    assert abs(clock.overhead(50, 1000) - 0.0667) < 1e-4
