"""What probes can teach: label sampling, optima over many probes, and the clock of a refit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.clock import memory, overhead, travel_budget
from llqr_sam_ref.exact.optima import (
    block_optimum,
    dense_optimum,
    diagonal_optimum,
    early_stopping_filter,
    scalar_optimum,
)
from llqr_sam_ref.exact.preconditioner import Block, Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.probes import micro_batch_gradients, sample_labels
from llqr_sam_ref.exact.relaxation import inner_loop, relaxed_gradient, relaxed_objective
from llqr_sam_ref.exact.structures import STRUCTURES
from tests.exact.relaxed import random_spd, random_symmetric

D = 6


def whole(name: str, array: Array) -> Preconditioner:
    """One block over all weights, its only stored array given."""
    structure = STRUCTURES[name]
    key = (structure.scales + structure.matrices)[0]
    return Preconditioner((Block(structure, (D,), {key: np.asarray(array)}),))


@pytest.mark.parametrize("white", [False, True])
def test_the_optima_are_stationary_on_the_average_probe(white: bool, rng: np.random.Generator) -> None:
    """Probes sqrt(d) times the columns of a root of C have the second moment C exactly."""
    G, C = random_spd(rng, D), np.eye(D) if white else random_spd(rng, D)
    probes = np.sqrt(D) * np.linalg.cholesky(C).T
    given = None if white else C
    optima = {
        "dense": dense_optimum(G),
        "diagonal": diagonal_optimum(G, given),
        "scalar": np.array([scalar_optimum(G, given)]),
    }
    for name, array in optima.items():
        U = whole(name, array)
        (gradient,) = relaxed_gradient(U, probes, G)
        assert max(np.abs(part).max() for part in gradient.values()) < 1e-13
        best = relaxed_objective(U, probes, G)
        for _ in range(5):
            other = whole(name, array + 0.1 * rng.standard_normal(np.shape(array)))
            assert relaxed_objective(other, probes, G) > best
        dense = U.to_dense()
        average = -np.trace(dense @ C) + np.trace(dense.T @ G @ dense @ C) / 2
        np.testing.assert_allclose(best, average, rtol=1e-12)


def test_white_probes_give_the_diagonal_the_mean_and_the_blocks(rng: np.random.Generator) -> None:
    G = random_spd(rng, D)
    np.testing.assert_allclose(diagonal_optimum(G), 1 / np.diag(G), rtol=1e-14)
    np.testing.assert_allclose(
        diagonal_optimum(G, np.diag(rng.uniform(0.1, 1, D))), 1 / np.diag(G), rtol=1e-12
    )
    np.testing.assert_allclose(scalar_optimum(G), D / np.trace(G), rtol=1e-14)
    blocks = block_optimum(G, (2, 4))
    residual = G @ blocks - np.eye(D)
    assert max(np.abs(residual[:2, :2]).max(), np.abs(residual[2:, 2:]).max()) < 1e-13
    assert np.abs(blocks - dense_optimum(G)).max() > 0.01


def test_the_average_probe_of_the_book() -> None:
    G = np.array([[2.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(diagonal_optimum(G), [0.5, 1.0])
    correlated = diagonal_optimum(G, [[1.0, 0.8], [0.8, 1.0]])
    assert [round(float(d), 3) for d in correlated] == [0.147, 0.882]


def test_many_turning_probes_reach_the_diagonal_optimum(rng: np.random.Generator) -> None:
    """Plain inner steps over probes of one second moment converge to the closed form."""
    G, C = random_spd(rng, D), random_spd(rng, D)
    probes = np.sqrt(D) * np.linalg.cholesky(C).T
    U = identity_preconditioner([[(D,)]], "diagonal")
    (block,) = inner_loop(U, probes, G, steps=4000, eta_U=0.05, clip=None).blocks
    np.testing.assert_allclose(block.arrays["d"], diagonal_optimum(G, C), rtol=1e-10)


@settings(max_examples=50, deadline=None)
@given(
    w=st.one_of(st.just(0.0), st.floats(1e-9, 10), st.floats(-2, -1e-9)),
    steps=st.integers(0, 60),
    a=st.floats(0.001, 0.1),
)
def test_the_filter_is_its_recursion(w: float, steps: int, a: float) -> None:
    response = 1.0
    for _ in range(steps):
        response -= a * (w * response - 1)
    np.testing.assert_allclose(early_stopping_filter(w, steps, a), response, rtol=1e-12)
    if w > 0:
        low, high = sorted((1.0, 1 / w))
        assert low * (1 - 1e-12) <= float(early_stopping_filter(w, steps, a)) <= high * (1 + 1e-12)


def test_the_filter_of_the_book() -> None:
    response = early_stopping_filter([10, 5, 2, 1, 0.5, 0.1, 0], 50, 0.05)
    golden = [0.1, 0.200000453, 0.502576888, 1.0, 1.7180119, 2.99518699, 3.5]
    np.testing.assert_allclose(response, golden, rtol=1e-8)
    damping = 1 / response[5] - 0.1
    assert round(float(damping), 4) == 0.2339


def test_a_summed_fisher_divides_the_target(rng: np.random.Generator) -> None:
    w = np.linalg.eigvalsh(random_symmetric(rng, D))
    for n in (1, 8, 128):
        np.testing.assert_allclose(
            early_stopping_filter(n * w, 7, 0.001),
            1 / (n * w) + (1 - 1 / (n * w)) * (1 - 0.001 * n * w) ** 7,
            rtol=1e-9,
        )
        np.testing.assert_allclose(early_stopping_filter(n * (1 / n), 7, 0.001), 1.0, rtol=1e-14)
        np.testing.assert_allclose(n * diagonal_optimum(n * np.eye(2)), 1.0)


def test_the_scale_of_the_loss_turns_the_relaxed_step_and_not_the_exact_one() -> None:
    w, g = np.array([0.1, 0.5, 2.0, 5.0]), np.ones(4)
    relaxed = {c: early_stopping_filter(c * w, 20, 0.02 * c * c * float(g @ g)) * c * g for c in (0.1, 1.0)}
    cosine = relaxed[0.1] @ relaxed[1.0] / np.prod([np.linalg.norm(s) for s in relaxed.values()])
    assert round(float(cosine), 4) == 0.8069
    np.testing.assert_allclose((0.1 * g) / (0.1 * w), g / w)


def test_the_clock_of_the_book() -> None:
    assert round(travel_budget(50, 1e-3, 5.0, 0.9), 7) == 2.0523192
    assert round(travel_budget(25, 5e-3, 5.0, 0.9), 2) == 4.16
    assert round(travel_budget(100, 1e-3, 5.0, 0.9), 2) == 4.55
    assert round(79 * 0.05 * travel_budget(50, 1e-3, 5.0, 0.9), 1) == 8.1
    np.testing.assert_allclose(memory(1000, 0.95), 20000)
    np.testing.assert_allclose(memory(1000, 0.9), 10000)
    np.testing.assert_allclose(memory(1000, 0.95) / (50000 / 128), 51.2)
    assert memory(10, 1.0) == float("inf")
    assert round(np.log(0.5) / np.log(0.95), 1) == 13.5
    assert [round(100 * overhead(50, every), 2) for every in (1000, 1500)] == [6.67, 4.44]
    assert round(100 * overhead(20, 100), 1) == 26.7
    assert round(100 * overhead(50, 100, probe=1 / 8), 2) == 8.33
    assert round(2 + overhead(50, 1000), 3) == 2.067


def test_starvation_of_the_book() -> None:
    """The published inner loop, diagonal, one direction, gradients of length 1, 0.3, 0.1 and 0.03."""
    G, direction = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1.0, 3.0]) / np.sqrt(10)
    moves = []
    for length in (1, 0.3, 0.1, 0.03):
        (block,) = inner_loop(identity_preconditioner([[(2,)]], "diagonal"), length * direction, G).blocks
        moves.append(float(np.linalg.norm(block.arrays["d"] - 1)))
    np.testing.assert_allclose(moves, [0.1854, 0.0183, 0.00205, 0.000185], rtol=3e-3)
    assert round(moves[0] / moves[2]) == 90


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 6))
def test_labels_are_drawn_by_inverse_cdf(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.ones(classes), size=20)
    u = rng.random(20)
    labels = sample_labels(pi, u)
    for row, uniform, label in zip(pi, u, labels, strict=True):
        edges = np.concatenate([[0.0], np.cumsum(row)])
        edges[-1] = 1.0
        assert edges[label] <= uniform < edges[label + 1]


def test_label_frequencies_and_edges() -> None:
    pi = np.array([0.2, 0.0, 0.5, 0.3])
    u = (np.arange(1000) + 0.5) / 1000
    labels = sample_labels(np.tile(pi, (1000, 1)), u)
    assert np.bincount(labels, minlength=4).tolist() == [200, 0, 500, 300]
    assert sample_labels([[0.5, 0.5]] * 3, [0.0, 0.5, np.nextafter(1, 0)]).tolist() == [0, 1, 1]
    assert sample_labels([[0.1] * 10], [np.nextafter(1, 0)]).tolist() == [9]


def test_micro_batches_are_contiguous_and_average_to_the_batch(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)

    def gradient(inputs: Array, targets: Array) -> Array:
        return np.asarray(inputs.T @ targets / len(targets))

    probes = micro_batch_gradients(gradient, x, y, 4)
    np.testing.assert_allclose(probes[1], gradient(x[3:6], y[3:6]))
    np.testing.assert_allclose(probes.mean(axis=0), gradient(x, y), rtol=1e-13)
