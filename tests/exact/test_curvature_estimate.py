"""The closed form over white probes in the probes' eigenbasis: unbiased, minimal, positive, scale-free."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact.bases import Bases, carry_diagonal, eigenbasis
from llqr_sam_ref.exact.curvature_estimate import (
    CurvatureEstimate,
    minimizer,
    no_curvature,
    relative_damping,
    update_curvature,
)
from llqr_sam_ref.exact.optima import separable_minimizer
from llqr_sam_ref.exact.relaxation import relaxed_gradient, relaxed_objective
from llqr_sam_ref.exact.structures import entries
from tests.exact.relaxed import NAMES, random_spd

SHAPES = ((3, 4), (3,), (2, 3))
SIZE = sum(entries(shape) for shape in SHAPES)


def estimate_of(F: np.ndarray, name: str) -> CurvatureEstimate:
    """The estimate after one refit whose probes have the second moment F exactly."""
    probes = np.linalg.cholesky(F).T
    return update_curvature(no_curvature(SHAPES, name), probes, len(probes))


@pytest.mark.parametrize("name", NAMES)
def test_the_scales_minimize_the_objective_over_white_probes(name: str, rng: np.random.Generator) -> None:
    F = random_spd(rng, SIZE)
    estimate = estimate_of(F, name)
    np.testing.assert_allclose(estimate.trace, np.trace(F), rtol=1e-12)
    U = minimizer(estimate, 0.2)
    white = np.sqrt(SIZE) * np.eye(SIZE)
    gradient = relaxed_gradient(U, white, F, 0.2)
    for block, part in zip(U.blocks, gradient, strict=True):
        exact = block.structure.scales + block.structure.matrices
        if block.structure.name in {"kronecker", "separable-ekfac"}:
            continue  # minimized by sweeps, below
        assert max(np.abs(part[key]).max() for key in exact) < 1e-12
    assert np.linalg.eigvalsh(U.to_dense()).min() > 0
    best = relaxed_objective(U, white, F, 0.2)
    for factor in (0.9, 1.1):
        scaled = U.with_arrays([
            {
                key: factor * array if key in {"u", "d", "D", "U", "d_Psi", "Psi"} else array
                for key, array in b.arrays.items()
            }
            for b in U.blocks
        ])
        assert relaxed_objective(scaled, white, F, 0.2) > best


def test_the_objective_over_white_probes_is_a_distance_from_the_inverse(rng: np.random.Generator) -> None:
    """E J = 1/2 |F^{1/2} U - F^{-1/2}|^2 - 1/2 tr F^{-1}."""
    F = random_spd(rng, SIZE)
    w, E = np.linalg.eigh(F)
    root, inverse_root = (E * np.sqrt(w)) @ E.T, (E / np.sqrt(w)) @ E.T
    white = np.sqrt(SIZE) * np.eye(SIZE)
    for name in NAMES:
        U = minimizer(estimate_of(F, name), 0.2)
        away = np.sum((root @ U.to_dense() - inverse_root) ** 2) / 2
        np.testing.assert_allclose(relaxed_objective(U, white, F), away - np.sum(1 / w) / 2, rtol=1e-11)


def test_separable_sweeps_descend_and_are_exact_on_rank_one(rng: np.random.Generator) -> None:
    a, b = rng.uniform(0.1, 10, 5), rng.uniform(0.1, 10, 4)
    d_Psi, d_Phi = separable_minimizer(np.outer(a, b))
    np.testing.assert_allclose(np.outer(d_Psi, d_Phi), 1 / np.outer(a, b), rtol=1e-13)

    def value(c: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sum(-np.outer(x, y) + c * np.outer(x, y) ** 2 / 2))

    for _ in range(20):
        c = rng.uniform(0.01, 1, (5, 4)) ** 3 + 0.03
        d_Psi, d_Phi = separable_minimizer(c)
        assert min(d_Psi.min(), d_Phi.min()) > 0
        best = value(c, d_Psi, d_Phi)
        assert best < value(c, np.ones(5), np.ones(4) / np.mean(c))
        stationary_in_b = -np.sum(d_Psi) + d_Phi * (c.T @ d_Psi**2)
        np.testing.assert_allclose(stationary_in_b, 0, atol=1e-12 * np.sum(d_Psi))
        long_a, long_b = d_Psi, d_Phi
        for _ in range(500):
            long_a = np.sum(long_b) / (c @ long_b**2)
            long_b = np.sum(long_a) / (c.T @ long_a**2)
        assert value(c, long_a, long_b) <= best <= 0.8 * value(c, long_a, long_b) < 0


def test_kronecker_is_separable_ekfac_multiplied_out(rng: np.random.Generator) -> None:
    F = random_spd(rng, SIZE)
    one, other = (
        minimizer(estimate_of(F, name), 0.1).to_dense() for name in ("kronecker", "separable-ekfac")
    )
    np.testing.assert_allclose(one, other, atol=1e-12 * np.abs(one).max())


def test_sampled_label_probes_are_unbiased(rng: np.random.Generator) -> None:
    """A linear softmax model: over all labels, weighted by the model, m V V' averages to the mean Fisher."""
    classes, features, m = 3, 4, 2
    W, x = rng.standard_normal((classes, features)), rng.standard_normal((m, features))
    logits = x @ W.T
    pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    F = np.zeros((12, 12))
    for row, p in zip(x, pi, strict=True):
        jacobian = np.kron(np.eye(classes), row)
        F += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian / m
    E_Psi, E_Phi = (np.linalg.qr(rng.standard_normal((side, side)))[0] for side in (classes, features))
    expected = np.zeros((classes, features))
    for labels in itertools.product(range(classes), repeat=m):
        V = (pi - np.eye(classes)[list(labels)]).T @ x / m
        weight = np.prod([p[label] for p, label in zip(pi, labels, strict=True)])
        state = update_curvature(
            no_curvature([(classes, features)], "ekfac"), V.reshape(1, -1), m, bases=[(E_Psi, E_Phi)]
        )
        assert state.estimates[0].c.min() >= 0
        expected += weight * state.estimates[0].c
    basis = np.kron(E_Psi, E_Phi)
    np.testing.assert_allclose(expected.ravel(), np.diag(basis.T @ F @ basis), rtol=1e-12)


def test_averages_are_bias_corrected(rng: np.random.Generator) -> None:
    """Against the running sum divided by 1 - beta^t; bases drawn at refits 1, 2, 5, 10 and nowhere else."""
    state, raw, grams = no_curvature([(3, 4)], "ekfac"), np.zeros((3, 4)), np.zeros((3, 3))
    drawn: list[int] = []
    basis: Bases = (np.eye(3), np.eye(4))
    for refit in range(1, 12):
        V = rng.standard_normal((2, 3, 4))
        state = update_curvature(state, V.reshape(2, 12), 5.0, bases=[basis])
        if state.bases_drawn > len(drawn):
            drawn.append(refit)
            grams = 0.8 * grams + 0.2 * 2.5 * sum(v @ v.T for v in V)
        raw = 0.95 * raw + 0.05 * 2.5 * np.sum(V**2, axis=0)
        (estimate,) = state.estimates
        np.testing.assert_allclose(estimate.c, raw / (1 - 0.95**refit), rtol=1e-12)
        assert estimate.grams[0] is not None
        np.testing.assert_allclose(estimate.grams[0], grams / (1 - 0.8 ** len(drawn)), atol=1e-12)
    assert drawn == [1, 2, 5, 10]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_carrying_the_diagonal_is_exact_for_a_diagonal_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old_L, new_L = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    old_R, new_R = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    c = rng.uniform(0, 1, (3, 4))
    carried = carry_diagonal(c, (old_L, old_R), (new_L, new_R))
    old, new = np.kron(old_L, old_R), np.kron(new_L, new_R)
    matrix = (old * c.ravel()) @ old.T
    np.testing.assert_allclose(carried.ravel(), np.diag(new.T @ matrix @ new), atol=1e-13)
    np.testing.assert_allclose(carried.sum(), c.sum(), rtol=1e-13)
    np.testing.assert_allclose(carry_diagonal(c, (old_L, old_R), (old_L, old_R)), c, atol=1e-13)


def test_bases_are_eigenvectors_of_the_averaged_grams(rng: np.random.Generator) -> None:
    state = no_curvature(SHAPES, "ekfac")
    for _ in range(2):
        state = update_curvature(state, rng.standard_normal((5, SIZE)), 3.0)
    for estimate in state.estimates:
        if len(estimate.shape) == 1:
            assert estimate.bases == (None, None)
            continue
        for E, gram in zip(estimate.bases, estimate.grams, strict=True):
            assert E is not None
            assert gram is not None
            turned = E.T @ gram @ E
            np.testing.assert_allclose(E.T @ E, np.eye(len(E)), atol=1e-13)
            # half the spread of the ridge is the most that it can leave beside the diagonal
            np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=5e-8 * np.trace(gram))
    assert eigenbasis(np.zeros((3, 3))) is None


def test_rounding_does_not_choose_a_basis(rng: np.random.Generator) -> None:
    """Where an eigenvalue occurs many times any rotation would do; ours is the same after a little noise."""
    seen = rng.standard_normal((4, 2))
    gram = np.zeros((9, 9))
    gram[np.ix_([1, 2, 5, 7], [1, 2, 5, 7])] = seen @ seen.T
    noise = rng.standard_normal((9, 9)) * 1e-16 * np.trace(gram)
    first, second = eigenbasis(gram), eigenbasis(gram + (noise + noise.T) / 2)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-6)
    assert np.abs(np.linalg.eigh(gram)[1] - np.linalg.eigh(gram + (noise + noise.T) / 2)[1]).max() > 0.1


def test_wide_sides_keep_the_identity(rng: np.random.Generator) -> None:
    probes = rng.standard_normal((5, SIZE))
    narrow = update_curvature(no_curvature(SHAPES, "ekfac", max_side=0), probes, 3.0)
    diagonal = update_curvature(no_curvature(SHAPES, "diagonal"), probes, 3.0)
    mixed = update_curvature(no_curvature(SHAPES, "ekfac", max_side=3), probes, 3.0)
    np.testing.assert_array_equal(minimizer(narrow, 1.0).to_dense(), minimizer(diagonal, 1.0).to_dense())
    assert [[E is None for E in estimate.bases] for estimate in mixed.estimates] == [
        [False, True],
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize("name", NAMES)
def test_relative_damping_has_no_units(name: str, rng: np.random.Generator) -> None:
    """Loss times t: probes times t, curvature times t^2, U divided by t^2, nothing else."""
    probes = rng.standard_normal((6, SIZE))
    dense = []
    for t in (1.0, 1e-3, 1e3):
        state = update_curvature(no_curvature(SHAPES, name), t * probes, 3.0)
        dense.append(t * t * minimizer(state, relative_damping(state, 0.03)).to_dense())
    for other in dense[1:]:
        np.testing.assert_allclose(other, dense[0], rtol=1e-9, atol=1e-9 * np.abs(dense[0]).max())
