"""What a change of coordinates, or of the loss's scale, does to SAM, M-SAM, ASAM and Fisher SAM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, landscapes
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.dynamics import perturbation
from llqr_sam_ref.exact.geometry import (
    Adaptive,
    Euclidean,
    Fisher,
    Metric,
    Monge,
    PositiveDefinite,
    ascent_gain,
    ascent_step,
)
from tests.exact.numerical import numerical_gradient
from tests.exact.relaxed import random_spd

BANANA = landscapes.banana()

# Coordinates ---


class Renaming:
    """w = psi(phi) = A phi + c sin(phi), with Jacobian J."""

    def __init__(self, rng: np.random.Generator, d: int, c: float) -> None:
        self.A, self.c, self.phi = rng.normal(size=(d, d)) + 2 * np.eye(d), c, rng.normal(size=d)
        self.J = self.A + np.diag(c * np.cos(self.phi))

    def __call__(self, phi: Array) -> Array:
        return np.asarray(self.A @ phi + self.c * np.sin(phi))


def test_the_monge_metric_is_carried_with_the_ambient_identity(rng: np.random.Generator) -> None:
    for _ in range(20):
        psi, g = Renaming(rng, 3, 0.3), rng.normal(size=3)
        J, g_phi = psi.J, psi.J.T @ g
        pulled_back = J.T @ Monge(g).matrix(3) @ J
        np.testing.assert_allclose(pulled_back, J.T @ J + np.outer(g_phi, g_phi), rtol=1e-12, atol=1e-12)
        carried = J @ ascent_step(g_phi, 0.1, PositiveDefinite(pulled_back))
        np.testing.assert_allclose(carried, ascent_step(g, 0.1, Monge(g)), rtol=1e-8, atol=1e-12)


def test_the_gradient_in_new_names_is_the_jacobian_transposed(rng: np.random.Generator) -> None:
    psi = Renaming(rng, 2, 0.3)
    g_phi = numerical_gradient(lambda phi: float(BANANA.value(psi(phi))), psi.phi)
    np.testing.assert_allclose(psi.J.T @ BANANA.gradient(psi(psi.phi)), g_phi, rtol=1e-8)


def test_the_published_formula_is_invariant_under_rigid_motions_only(rng: np.random.Generator) -> None:
    sam, monge = dynamics.sam(0.1, 0.1), dynamics.monge_sam(0.1, 0.1)
    for method in (sam, monge):
        moved = []
        for J in (np.linalg.qr(rng.normal(size=(3, 3)))[0], np.eye(3)[[2, 0, 1]], np.diag([1.0, -1, 1])):
            g = rng.normal(size=3)
            np.testing.assert_allclose(J @ perturbation(method, J.T @ g), perturbation(method, g), atol=1e-15)
        for _ in range(10):
            J, g = Renaming(rng, 3, 0.3).J, rng.normal(size=3)
            there, here = J @ perturbation(method, J.T @ g), perturbation(method, g)
            moved.append(np.linalg.norm(there - here) / np.linalg.norm(here))
        assert min(moved) > 0.05


def test_perturbed_points_in_two_names_differ_at_second_order(rng: np.random.Generator) -> None:
    psi, g = Renaming(rng, 3, 0.3), rng.normal(size=3)
    straight = Renaming(rng, 3, 0.0)

    def discrepancy(psi: Renaming, rho: float) -> float:
        e_phi = ascent_step(psi.J.T @ g, rho, PositiveDefinite(psi.J.T @ Monge(g).matrix(3) @ psi.J))
        point = psi(psi.phi) + ascent_step(g, rho, Monge(g))
        return float(np.linalg.norm(psi(psi.phi + e_phi) - point))

    ratio = [discrepancy(psi, rho) / rho**2 for rho in (1e-1, 1e-2, 1e-3)]
    np.testing.assert_allclose(ratio, ratio[2], rtol=0.05)
    assert ratio[2] > 1e-3
    assert discrepancy(straight, 0.1) < 1e-13


def test_asam_is_covariant_under_positive_diagonal_scalings(rng: np.random.Generator) -> None:
    g, w, A = rng.normal(size=5), rng.normal(size=5), 10.0 ** rng.uniform(-1, 1, 5)
    here = ascent_step(g, 0.1, Adaptive(w))
    np.testing.assert_allclose(A * ascent_step(A * g, 0.1, Adaptive(w / A)), here, rtol=1e-12)
    with_eta = A * ascent_step(A * g, 0.1, Adaptive(w / A, eta=0.1))
    assert np.linalg.norm(with_eta - ascent_step(g, 0.1, Adaptive(w, eta=0.1))) > 1e-3
    for method in (dynamics.sam(0.1, 0.1), dynamics.monge_sam(0.1, 0.1)):
        ours = perturbation(method, g)
        change = np.linalg.norm(A * perturbation(method, A * g) - ours) / np.linalg.norm(ours)
        assert change > 0.3


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0, 128.0])
def test_the_scale_of_the_loss_changes_m_sam_and_not_sam(c: float, rng: np.random.Generator) -> None:
    g = rng.normal(size=4)
    s = float(np.linalg.norm(g))
    sam, monge = dynamics.sam(0.1, 0.1), dynamics.monge_sam(0.1, 0.1)
    np.testing.assert_allclose(perturbation(sam, c * g), perturbation(sam, g), rtol=1e-14)
    assert np.linalg.norm(perturbation(monge, c * g)) == pytest.approx(0.1 / np.hypot(1, c * s), rel=1e-12)
    np.testing.assert_allclose(
        perturbation(monge, c * g), perturbation(dynamics.monge_sam(0.1, 0.1, alpha=c), g), rtol=1e-12
    )


class ReluNet:
    """A two-layer ReLU network with squared error; its weights are (W_1, W_2), flattened."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.X, self.Y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
        self.w = rng.normal(size=3 * 4 + 4 * 2)

    def output(self, w: Array) -> Array:
        return np.asarray(np.maximum(self.X @ w[:12].reshape(3, 4), 0) @ w[12:].reshape(4, 2))

    def gradient(self, w: Array) -> Array:
        W_1, W_2 = w[:12].reshape(3, 4), w[12:].reshape(4, 2)
        hidden = np.maximum(self.X @ W_1, 0)
        error = (hidden @ W_2 - self.Y) / len(self.X)
        inner = error @ W_2.T * (hidden > 0)
        return np.concatenate([(self.X.T @ inner).ravel(), (hidden.T @ error).ravel()])


def test_a_relu_network_and_its_rescaled_twins(rng: np.random.Generator) -> None:
    net = ReluNet(rng)
    numeric = numerical_gradient(lambda w: float(np.sum((net.output(w) - net.Y) ** 2) / 40), net.w, 1e-4)
    np.testing.assert_allclose(net.gradient(net.w), numeric, atol=1e-9)
    rho, gains = 0.1, []
    for a in (1.0, 5.0, 20.0):
        scale = np.concatenate([np.full(12, a), np.full(8, 1 / a)])
        w = scale * net.w
        np.testing.assert_allclose(net.output(w), net.output(net.w), atol=1e-10)
        for c in (1e3, 1e-4):  # the scale of the loss: steep ground and flat ground
            g = c * net.gradient(w)
            metrics = (Adaptive(w), Euclidean(), Monge(g))
            gains.append([float(ascent_gain(g, rho, metric)) / rho for metric in metrics])
    adaptive, sam, monge = np.array(gains).reshape(3, 2, 3).transpose(2, 1, 0)  # metric, ground, twin
    for ground in adaptive:
        np.testing.assert_allclose(ground, ground[0], rtol=1e-8)
    assert (np.diff(sam, axis=1) > 0).all()
    np.testing.assert_allclose(monge[0], 1, rtol=1e-3)  # steep: the rise is rho in every naming
    assert monge[1, 2] / monge[1, 0] > 3  # flat: it depends on the naming like SAM's


# Fisher ---


def test_the_empirical_fisher_dominates_monge(rng: np.random.Generator) -> None:
    samples = rng.normal(size=(12, 4)) + 0.5
    g, F = samples.mean(0), samples.T @ samples / 12
    np.testing.assert_allclose(F - np.outer(g, g), np.cov(samples.T, bias=True), atol=1e-13)
    assert np.linalg.eigvalsh(F - np.outer(g, g))[0] >= -1e-12
    gains = [ascent_gain(g, 0.1, metric) for metric in (Fisher(F, damping=1.0), Monge(g))]
    assert gains[0] <= gains[1] <= ascent_gain(g, 0.1)
    one = samples[:1]
    np.testing.assert_allclose(Fisher(one.T @ one, 1.0).matrix(4), Monge(one[0]).matrix(4), atol=1e-12)


def test_which_fisher_is_covariant_under_which_maps(rng: np.random.Generator) -> None:
    F, g = random_spd(rng, 4), rng.normal(size=4)
    A, scaling = rng.normal(size=(4, 4)) + 2 * np.eye(4), np.diag(10.0 ** rng.uniform(-1, 1, 4))

    def change(metric: Callable[[Array], Metric], J: Array) -> float:
        here, there = ascent_step(g, 0.1, metric(F)), J @ ascent_step(J.T @ g, 0.1, metric(J.T @ F @ J))
        return float(np.linalg.norm(there - here) / np.linalg.norm(here))

    assert change(Fisher, A) < 1e-10
    assert change(Fisher, scaling) < 1e-10
    assert change(lambda F: Fisher(np.diag(F)), scaling) < 1e-10
    assert change(lambda F: Fisher(np.diag(F)), A) > 0.01
    assert change(lambda F: Fisher(F, damping=1.0), A) > 0.01
