"""The relaxed objective, its gradient, and the inner loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact import relaxation
from llqr_sam_ref.exact.clock import travel_budget
from llqr_sam_ref.exact.optima import early_stopping_filter
from llqr_sam_ref.exact.preconditioner import Block, Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.relaxation import (
    average,
    condition_left,
    guard_signs,
    inner_loop,
    relaxed_objective,
)
from llqr_sam_ref.exact.structures import Dense, Diagonal, Kronecker
from tests.exact.relaxed import (
    LAYERS,
    NAMES,
    SIZE,
    complex_step,
    distance,
    random_preconditioner,
    random_spd,
    random_symmetric,
)

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), positive=st.booleans(), mu=st.floats(0, 10))
def test_the_objective_is_its_quadratic_form(seed: int, name: str, positive: bool, mu: float) -> None:
    rng = np.random.default_rng(seed)
    U = random_preconditioner(name, rng, positive=positive)
    G, g = random_symmetric(rng), rng.standard_normal(SIZE)
    s = U.to_dense() @ g
    terms = g @ s, s @ G @ s / 2, mu * s @ s / 2
    scale = 1 + sum(abs(term) for term in terms)
    assert abs(relaxed_objective(U, g, G, mu) - (-terms[0] + terms[1] + terms[2])) < 1e-12 * scale
    assert abs(relaxed_objective(U, g, lambda v: G @ v, mu) - relaxed_objective(U, g, G, mu)) < 1e-12 * scale


def test_the_gap_is_half_the_squared_distance_in_the_metric(rng: np.random.Generator) -> None:
    G, g = random_spd(rng), rng.standard_normal(SIZE)
    damped = G + 0.3 * np.eye(SIZE)
    best = np.linalg.solve(damped, g)
    for name in NAMES:
        U = random_preconditioner(name, rng)
        away = U.apply(g) - best
        gap = relaxed_objective(U, g, G, 0.3) + g @ best / 2
        np.testing.assert_allclose(gap, away @ damped @ away / 2, rtol=1e-11)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), per_layer=st.booleans(), positive=st.booleans())
def test_the_gradient_is_exact_for_every_structure(
    seed: int, name: str, per_layer: bool, positive: bool
) -> None:
    """Against complex steps, with an indefinite curvature and three probes."""
    rng = np.random.default_rng(seed)
    U = random_preconditioner(name, rng, per_layer=per_layer, positive=positive)
    G, probes = random_symmetric(rng), rng.standard_normal((3, SIZE))
    analytic = relaxation.relaxed_gradient(U, probes, G, 0.1)
    assert distance(analytic, complex_step(lambda V: relaxed_objective(V, probes, G, 0.1), U)) < 1e-12


def test_several_probes_mean_their_average(rng: np.random.Generator) -> None:
    U, G = random_preconditioner("ekfac", rng), random_spd(rng)
    probes = rng.standard_normal((4, SIZE))
    single = [relaxed_objective(U, g, G) for g in probes]
    np.testing.assert_allclose(relaxed_objective(U, probes, G), np.mean(single), rtol=1e-13)


def test_the_inner_loop_against_a_second_writing_of_it(rng: np.random.Generator) -> None:
    """Kronecker on one kernel, the clip active in a part of the steps, written with plain matrices."""
    X, G = rng.standard_normal((4, 3)), random_spd(rng, 12)
    Psi, Phi = np.eye(4), np.eye(3)
    v_Psi, v_Phi = np.zeros((4, 4)), np.zeros((3, 3))
    clipped = 0
    for _ in range(30):
        Z = (G @ (Psi @ X @ Phi.T).ravel() + 0.05 * (Psi @ X @ Phi.T).ravel() - X.ravel()).reshape(4, 3)
        d_Psi, d_Phi = Z @ Phi @ X.T, Z.T @ Psi @ X
        for v, d in ((v_Psi, d_Psi), (v_Phi, d_Phi)):
            length = np.sqrt(np.sum(d * d))
            clipped += length > 2
            v *= 0.9
            v += d * min(1.0, 2 / length)
        Psi, Phi = Psi - 1e-2 * v_Psi, Phi - 1e-2 * v_Phi
    U = inner_loop(
        identity_preconditioner([[(4, 3)]], "kronecker"), X.ravel(), G, 0.05, steps=30, eta_U=1e-2, clip=2.0
    )
    assert 0 < clipped < 60
    np.testing.assert_allclose(U.blocks[0].arrays["Psi"], Psi, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(U.blocks[0].arrays["Phi"], Phi, rtol=1e-12, atol=1e-13)


def test_the_large_kronecker_factor_never_has_to_be_formed(rng: np.random.Generator) -> None:
    """Phi_t X' = Phi_0 X' + W_t (X X') with W_t of the small shape, through momentum, clipping and averaging.

    Kernel (output 3, input 7): the input side is the large one. dPhi = Y X with Y = Z' Psi (input, output).
    """
    X, G = rng.standard_normal((3, 7)), random_spd(rng, 21)
    start = {"Psi": np.eye(3), "Phi": np.eye(7) + 0.1 * rng.standard_normal((7, 7))}
    block = Preconditioner((Block(Kronecker(), (3, 7), start),))
    full = inner_loop(block, X.ravel(), G, steps=30, eta_U=1e-2, clip=1.0)
    Psi, W, v_Psi, v_W = np.eye(3), np.zeros((7, 3)), np.zeros((3, 3)), np.zeros((7, 3))
    gram, origin = X @ X.T, start["Phi"] @ X.T
    for _ in range(30):
        moved = origin + W @ gram
        S = Psi @ moved.T
        Z = (G @ S.ravel() - X.ravel()).reshape(3, 7)
        Y, d_Psi = Z.T @ Psi, Z @ moved
        length = float(np.sqrt(np.sum((Y.T @ Y) * gram)))
        v_W = 0.9 * v_W + Y * min(1.0, 1.0 / length)
        v_Psi = 0.9 * v_Psi + d_Psi * min(1.0, 1.0 / float(np.linalg.norm(d_Psi)))
        W, Psi = W - 1e-2 * v_W, Psi - 1e-2 * v_Psi
    np.testing.assert_allclose(full.blocks[0].arrays["Phi"], start["Phi"] + W @ X, atol=1e-12)
    np.testing.assert_allclose(full.blocks[0].arrays["Psi"], Psi, atol=1e-12)
    kept = average(block, full, 0.95).blocks[0].arrays["Phi"]
    np.testing.assert_allclose(kept, start["Phi"] + 0.05 * W @ X, atol=1e-12)


def test_non_finite_entries_are_replaced_before_the_clip() -> None:
    array = np.array([np.nan, np.inf, -np.inf, 2.0])
    assert np.array_equal(relaxation.clip_array(array, None), [0.0, 1.0, -1.0, 2.0])
    np.testing.assert_allclose(relaxation.clip_array(array, 1.0), np.array([0, 1, -1, 2]) / np.sqrt(6))
    blown = inner_loop(
        Preconditioner((Block(Diagonal(), (2,), {"d": np.array([1e200, 1.0])}),)),
        np.array([1e200, 1.0]), np.eye(2), steps=1, eta_U=1.0, clip=5.0
    )  # fmt: skip
    np.testing.assert_allclose(blown.blocks[0].arrays["d"], [1e200, 1.0])


def test_the_sign_guard_touches_scalars_and_diagonals_only(rng: np.random.Generator) -> None:
    for name in NAMES:
        U = random_preconditioner(name, rng, per_layer=True).with_arrays([
            {key: -np.abs(array) for key, array in block.arrays.items()}
            for block in random_preconditioner(name, rng, per_layer=True).blocks
        ])
        for before, after in zip(U.blocks, guard_signs(U).blocks, strict=True):
            for key, array in after.arrays.items():
                guarded = before.structure.name in {"scalar", "diagonal"}
                assert np.array_equal(array, np.full_like(array, 1e-8) if guarded else before.arrays[key])


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_started_average_is_a_relaxed_step(name: str, rng: np.random.Generator) -> None:
    old = random_preconditioner(name, rng)
    new = inner_loop(old, rng.standard_normal(SIZE), random_spd(rng), steps=3)
    relaxed = [
        {key: a.arrays[key] + 0.05 * (b.arrays[key] - a.arrays[key]) for key in a.arrays}
        for a, b in zip(old.blocks, new.blocks, strict=True)
    ]
    assert distance([dict(block.arrays) for block in average(old, new, 0.95).blocks], relaxed) < 1e-14


@pytest.mark.parametrize("name", NAMES)
def test_the_length_of_the_probe_is_an_inner_learning_rate(name: str, rng: np.random.Generator) -> None:
    """J at t g is t^2 J at g: the run at (t g, rate a) is the run at (g, rate a t^2), without clipping."""
    U, G = identity_preconditioner(LAYERS, name), random_spd(rng)
    g = rng.standard_normal(SIZE) / 5
    moves = []
    for t in (1.0, 0.1, 0.03):
        scaled = inner_loop(U, t * g, G, steps=20, eta_U=1e-2, clip=None)
        slowed = inner_loop(U, g, G, steps=20, eta_U=1e-2 * t * t, clip=None)
        assert (
            distance([dict(b.arrays) for b in scaled.blocks], [dict(b.arrays) for b in slowed.blocks]) < 1e-12
        )
        moves.append(
            np.sqrt(
                sum(
                    np.sum((b.arrays[key] - a.arrays[key]) ** 2)
                    for a, b in zip(U.blocks, scaled.blocks, strict=True)
                    for key in a.arrays
                )
            )
        )
    assert abs(np.log(moves[1] / moves[2]) / np.log(0.1 / 0.03) - 2) < 0.02


def test_a_saturated_gradient_travels_the_whole_budget() -> None:
    """J is linear in U when G = 0: the gradient -g g' is constant, and longer than the clip."""
    (block,) = inner_loop(
        identity_preconditioner([[(2,)]], "dense"), np.array([3.0, 4.0]), np.zeros((2, 2))
    ).blocks
    travel = np.linalg.norm(block.arrays["U"] - np.eye(2))
    np.testing.assert_allclose(travel, travel_budget(50, 1e-3, 5.0, 0.9), rtol=1e-13)
    assert round(travel, 4) == 2.0523


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), size=st.floats(0.1, 30))
def test_no_stored_array_leaves_the_budget(seed: int, name: str, size: float) -> None:
    rng = np.random.default_rng(seed)
    U = identity_preconditioner(LAYERS, name, per_layer=True)
    moved = inner_loop(U, size * rng.standard_normal(SIZE), random_symmetric(rng), steps=10)
    for a, b in zip(U.blocks, moved.blocks, strict=True):
        for key, array in a.arrays.items():
            assert np.linalg.norm(b.arrays[key] - array) <= travel_budget(10, 1e-3, 5.0, 0.9) * (1 + 1e-12)


def test_plain_inner_steps_are_a_spectral_filter(rng: np.random.Generator) -> None:
    G, g = random_symmetric(rng, 6), rng.standard_normal(6)
    G = G / np.linalg.norm(G, 2)
    w, E = np.linalg.eigh(G)
    (block,) = inner_loop(
        identity_preconditioner([[(6,)]], "dense"), g, G, steps=17, eta_U=0.1, beta=0.0, clip=None
    ).blocks
    filtered = E @ (early_stopping_filter(w, 17, 0.1 * float(g @ g)) * (E.T @ g))
    np.testing.assert_allclose(block.arrays["U"] @ g, filtered, rtol=1e-12, atol=1e-12)
    expected = np.eye(6) + np.outer(filtered - g, g) / (g @ g)
    np.testing.assert_allclose(block.arrays["U"], expected, rtol=1e-12, atol=1e-12)


# Numbers of the book


def test_one_probe_a_diagonal_memorizes_the_newton_step() -> None:
    G, g = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1.0, 3.0])
    U = Preconditioner((Block(Diagonal(), (2,), {"d": np.linalg.solve(G, g) / g}),))
    np.testing.assert_allclose(U.apply(g), [-2.0, 5.0])
    np.testing.assert_allclose(U.blocks[0].arrays["d"], [-2.0, 5 / 3])
    np.testing.assert_allclose(relaxed_objective(U.identity(), g, G), -1.5)
    np.testing.assert_allclose(relaxed_objective(U, g, G), -6.5)
    np.testing.assert_allclose(relaxed_objective(U, g, G), -g @ np.linalg.solve(G, g) / 2)


def test_one_probe_cannot_tell_two_dense_preconditioners_apart() -> None:
    G, g, v = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1.0, 3.0]), np.array([3.0, -1.0])
    one, other = (
        Preconditioner((Block(Dense(), (2,), {"U": matrix}),))
        for matrix in (np.linalg.inv(G), np.linalg.inv(G) + np.outer(v, v) / 5)
    )
    np.testing.assert_allclose(relaxed_objective(one, g, G), relaxed_objective(other, g, G), rtol=1e-14)
    assert [round(float(np.linalg.norm(U.to_dense())), 3) for U in (one, other)] == [2.646, 4.219]


@pytest.mark.parametrize(
    ("turn", "gamma", "distances"),
    [
        (0, 0.0, {1: 0.824742834, 2: 0.752302615, 10: 0.70712181, 40: 0.707106781}),
        (50, 0.0, {1: 0.824742834, 2: 0.794513668, 10: 0.10522714, 40: 5.35760612e-05}),
        (50, 0.5, {1: 0.904983192, 2: 0.895099769, 10: 0.364330762, 40: 0.0120127583}),
        (180, 0.0, {40: 0.707106781}),
    ],
)
def test_turning_probes_identify_the_inverse(turn: float, gamma: float, distances: dict[int, float]) -> None:
    G = np.array([[1.1, 0.9], [0.9, 1.1]])
    target = np.linalg.inv(G)
    U = identity_preconditioner([[(2,)]], "dense")
    first = np.linalg.norm(U.to_dense() - target)
    for refit in range(1, 41):
        angle = np.deg2rad((refit - 1) * turn)
        g = np.array([np.cos(angle), np.sin(angle)])
        U = average(U, inner_loop(U, g, G, steps=50, eta_U=0.05, beta=0.0, clip=None), gamma)
        if refit in distances:
            np.testing.assert_allclose(
                np.linalg.norm(U.to_dense() - target) / first, distances[refit], rtol=1e-8
            )


def test_kronecker_and_ekfac_are_not_convex() -> None:
    for name, first in (("kronecker", "Psi"), ("ekfac", "E_Psi")):
        U = identity_preconditioner([[(1, 1)]], name)
        (block,) = U.blocks
        values = []
        for sign in (1.0, -1.0, 0.0):
            arrays = {**block.arrays, first: np.full((1, 1), sign)}
            if name == "kronecker":
                arrays["Phi"] = np.full((1, 1), sign)
            values.append(relaxed_objective(U.with_arrays([arrays]), np.ones(1), np.eye(1)))
        assert values == [-0.5, -0.5, 0.0]


@pytest.mark.parametrize(
    ("degrees", "left"), [(0, 1.0), (5, 1.63), (10, 2.56), (15, 3.76), (22.5, 5.8799), (30, 7.95), (45, 10.0)]
)
def test_what_a_diagonal_leaves_of_a_rotated_ravine(degrees: float, left: float) -> None:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    R = np.array([[c, -s], [s, c]])
    H = R @ np.diag([10.0, 1.0]) @ R.T
    condition = condition_left(np.diag(1 / np.diag(H)), H)
    r = abs(H[0, 1]) / np.sqrt(H[0, 0] * H[1, 1])
    np.testing.assert_allclose(condition, (1 + r) / (1 - r), rtol=1e-12)
    assert abs(condition - left) < 10 ** -len(str(left).partition(".")[2])
    np.testing.assert_allclose(condition_left(np.eye(2), H), 10.0)
    np.testing.assert_allclose(condition_left(np.linalg.inv(H), H), 1.0)


def test_kronecker_undoes_kronecker_curvature_and_a_diagonal_does_not() -> None:
    c, s = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    R = np.array([[c, -s], [s, c]])
    inner, outer = R @ np.diag([10.0, 1.0]) @ R.T, R @ np.diag([4.0, 1.0]) @ R.T
    G = np.kron(outer, inner)
    np.testing.assert_allclose(np.linalg.eigvalsh(G), [1, 4, 10, 40])
    factors = {"Psi": np.linalg.inv(outer), "Phi": np.linalg.inv(inner)}
    U = Preconditioner((Block(Kronecker(), (2, 2), factors),))
    np.testing.assert_allclose(condition_left(U.to_dense(), G), 1.0)
    assert round(condition_left(np.diag(1 / np.diag(G)), G), 2) == 26.97
