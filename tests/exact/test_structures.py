"""Six structures: apply, pull-back, dense matrix, count, and who stays positive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact.preconditioner import Block, Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.structures import EKFAC, STRUCTURES, Kronecker, SeparableEKFAC, stored_numbers
from tests.exact.relaxed import (
    LAYERS,
    NAMES,
    SIZE,
    complex_step,
    distance,
    random_preconditioner,
)

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_identity_changes_nothing(
    name: str, per_layer: bool, positive: bool, rng: np.random.Generator
) -> None:
    U = identity_preconditioner(LAYERS, name, per_layer=per_layer, positive=positive)
    g = rng.standard_normal(SIZE)
    assert U.size == SIZE
    assert np.array_equal(U.apply(g), g)
    assert np.array_equal(U.to_dense(), np.eye(SIZE))
    moved = random_preconditioner(name, rng, per_layer=per_layer, positive=positive)
    assert np.array_equal(moved.identity().to_dense(), np.eye(SIZE))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), per_layer=st.booleans(), positive=st.booleans())
def test_apply_is_the_dense_matrix_times_the_vector(
    seed: int, name: str, per_layer: bool, positive: bool
) -> None:
    rng = np.random.default_rng(seed)
    U = random_preconditioner(name, rng, per_layer=per_layer, positive=positive)
    g, v = rng.standard_normal((2, SIZE))
    scale = np.abs(U.to_dense()).max()
    np.testing.assert_allclose(U.apply(g), U.to_dense() @ g, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(
        U.apply(2 * g - v), 2 * U.apply(g) - U.apply(v), rtol=1e-11, atol=1e-12 * scale
    )


@settings(max_examples=15, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), positive=st.booleans())
def test_pullback_is_the_derivative_of_z_U_g(seed: int, name: str, positive: bool) -> None:
    rng = np.random.default_rng(seed)
    U = random_preconditioner(name, rng, positive=positive)
    g, z = rng.standard_normal((2, SIZE))
    assert distance(U.pullback(g, z), complex_step(lambda V: complex(z @ V.apply(g)), U)) < 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=seeds, name=st.sampled_from(NAMES), per_layer=st.booleans())
def test_positive_blocks_stay_positive(seed: int, name: str, per_layer: bool) -> None:
    rng = np.random.default_rng(seed)
    dense = random_preconditioner(name, rng, per_layer=per_layer, positive=True).to_dense()
    np.testing.assert_allclose(dense, dense.T, atol=1e-12 * np.abs(dense).max())
    assert np.linalg.eigvalsh(dense).min() > 0


def test_free_factors_can_point_uphill() -> None:
    factors = {"Psi": np.array([[1.0, 10.0], [0.0, 1.0]]), "Phi": np.eye(1)}
    U = Preconditioner((Block(Kronecker(), (2, 1), factors),))
    g = np.array([1.0, -1.0])
    assert np.all(np.linalg.eigvals(U.to_dense()) > 0)
    assert g @ U.apply(g) == -8


def test_ekfac_has_as_many_negative_directions_as_D_has_negative_entries(rng: np.random.Generator) -> None:
    for _ in range(20):
        factors = {
            "E_Psi": rng.standard_normal((3, 3)),
            "E_Phi": rng.standard_normal((4, 4)),
            "D": rng.standard_normal((3, 4)),
        }
        spectrum = np.linalg.eigvalsh(EKFAC().to_dense(factors, (3, 4)))
        assert np.sum(spectrum < 0) == np.sum(factors["D"] < 0)


def test_separable_ekfac_in_orthogonal_bases_is_a_kronecker_product(rng: np.random.Generator) -> None:
    E_Psi, E_Phi = (np.linalg.qr(rng.standard_normal((side, side)))[0] for side in (3, 4))
    d_Psi, d_Phi = rng.standard_normal(3), rng.standard_normal(4)
    separable = {"E_Psi": E_Psi, "E_Phi": E_Phi, "d_Psi": d_Psi, "d_Phi": d_Phi}
    product = {"Psi": (E_Psi * d_Psi) @ E_Psi.T, "Phi": (E_Phi * d_Phi) @ E_Phi.T}
    np.testing.assert_allclose(
        SeparableEKFAC().to_dense(separable, (3, 4)), Kronecker().to_dense(product, (3, 4)), atol=1e-14
    )


def test_transposing_a_kernel_swaps_the_two_sides(rng: np.random.Generator) -> None:
    X = rng.standard_normal((3, 4))
    Psi, Phi = rng.standard_normal((3, 3)), rng.standard_normal((4, 4))
    straight = Kronecker().apply({"Psi": Psi, "Phi": Phi}, X)
    np.testing.assert_allclose(Kronecker().apply({"Psi": Phi, "Phi": Psi}, X.T).T, straight, rtol=1e-13)


def test_vectors_get_a_diagonal_and_layers_are_joined_only_where_asked() -> None:
    shapes = {
        (name, joined): [
            (b.structure.name, b.shape)
            for b in identity_preconditioner(LAYERS, name, per_layer=joined).blocks
        ]
        for name in NAMES
        for joined in (False, True)
    }
    for name in ("kronecker", "ekfac", "separable-ekfac"):
        expected = [(name, (4, 3)), ("diagonal", (4,)), (name, (2, 4)), ("diagonal", (2,))]
        assert shapes[name, False] == shapes[name, True] == expected
    for name in ("scalar", "diagonal", "dense"):
        assert shapes[name, False] == [(name, shape) for layer in LAYERS for shape in layer]
        assert shapes[name, True] == [(name, (16,)), (name, (10,))]


def test_counting_a_wide_convolution() -> None:
    counts = {name: stored_numbers(name, (512, 512 * 9)) for name in NAMES}
    assert counts == {
        "scalar": 1,
        "diagonal": 2_359_296,
        "kronecker": 21_495_808,
        "ekfac": 23_855_104,
        "separable-ekfac": 21_495_808 + 512 + 4608,
        "dense": 5_566_277_615_616,
    }
    assert stored_numbers("diagonal", (1000, 1000)) == 1_000_000
    assert stored_numbers("kronecker", (1000, 1000)) == 2_000_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_the_count_is_what_the_arrays_hold(name: str, shape: tuple[int, ...]) -> None:
    (block,) = identity_preconditioner([[shape]], name).blocks
    assert sum(array.size for array in block.arrays.values()) == stored_numbers(name, shape)
    assert STRUCTURES[name].name == name


def test_averaging_factors_is_not_averaging_products() -> None:
    one, three = ({"Psi": np.full((1, 1), a), "Phi": np.full((1, 1), a)} for a in (1.0, 3.0))
    middle = {name: (one[name] + three[name]) / 2 for name in one}
    kronecker, X = Kronecker(), np.ones((1, 1))
    assert kronecker.apply(middle, X) == 4
    assert (kronecker.apply(one, X) + kronecker.apply(three, X)) / 2 == 5
