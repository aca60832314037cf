"""Structures against their dense matrices, automatic differentiation and the exact layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llqr_sam_ref.exact.preconditioner import Block as ExactBlock
from llqr_sam_ref.exact.structures import stored_numbers, structure_for
from llqr_sam_ref.optim.structures import STRUCTURES, Factors, Structure, make_structure

SHAPES = ((3, 4), (4, 3), (5,))
LIMITS: list[dict[str, Any]] = [{}, {"max_side": 3}, {"max_side": 2, "wide": "blocks"}, {"max_side": 0}]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near_identity(structure: Structure, batch: tuple[int, ...] = (), seed: int = 5) -> Factors:
    arrays = structure.identity(batch, torch.float64)
    return {n: a + 0.3 * normal(*a.shape, seed=seed + i) for i, (n, a) in enumerate(arrays.items())}


def every_structure() -> list[Structure]:
    found = {
        make_structure(name, shape, positive=positive, **limit): None
        for name in STRUCTURES
        for shape in SHAPES
        for positive in (False, True)
        for limit in LIMITS
    }
    return list(found)


@pytest.mark.parametrize("structure", every_structure(), ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_apply_is_the_dense_matrix_and_pullback_is_its_derivative(
    structure: Structure, batch: tuple[int, ...]
) -> None:
    X, Z = normal(*batch, *structure.shape, seed=1), normal(*batch, *structure.shape, seed=2)
    one = structure.apply(structure.identity(batch, torch.float64), X)
    assert torch.equal(one, X)
    arrays = {n: a.requires_grad_() for n, a in near_identity(structure, batch).items()}
    S = structure.apply(arrays, X)
    U = structure.to_dense(arrays).to(torch.float64)
    flat = X.reshape(*batch, structure.size, 1)
    assert torch.allclose((U @ flat).reshape(X.shape), S, rtol=0, atol=1e-13)
    if arrays:
        expected = torch.autograd.grad((Z * S).sum(), list(arrays.values()))
        found = structure.pullback(arrays, X, Z)
        for name, gradient in zip(arrays, expected, strict=True):
            assert found[name].shape == gradient.shape
            assert torch.allclose(found[name], gradient, rtol=1e-12, atol=1e-12)
    assert structure.cost().entries == sum(a[(0,) * len(batch)].numel() for a in arrays.values())


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positive", [False, True])
def test_structures_equal_the_exact_layer(name: str, shape: tuple[int, ...], positive: bool) -> None:
    structure = make_structure(name, shape, positive=positive)
    arrays = near_identity(structure)
    exact = ExactBlock(structure_for(name, shape), shape, {n: a.numpy() for n, a in arrays.items()}, positive)
    X, Z = normal(*shape, seed=1), normal(*shape, seed=2)
    S = structure.apply(arrays, X)
    np.testing.assert_allclose(S.reshape(-1), exact.apply(X.numpy().ravel()), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(structure.to_dense(arrays), exact.to_dense(), rtol=1e-12, atol=1e-13)
    expected = exact.pullback(X.numpy().ravel(), Z.numpy().ravel())
    found = structure.pullback(arrays, X, Z)
    assert set(found) == set(expected)
    for array, gradient in expected.items():
        np.testing.assert_allclose(found[array], gradient, rtol=1e-12, atol=1e-12)
    assert structure.cost().entries == stored_numbers(name, shape)


@pytest.mark.parametrize("name", STRUCTURES)
def test_positive_structures_are_positive_definite_wherever_their_arrays_go(name: str) -> None:
    structure = make_structure(name, (3, 4), positive=True)
    for seed in range(5):
        arrays = {
            n: 2 * normal(*s, seed=seed * 7 + i) for i, (n, s) in enumerate(structure.array_shapes().items())
        }
        U = structure.to_dense(arrays)
        assert torch.allclose(U, U.mT, rtol=0, atol=1e-9)
        assert float(torch.linalg.eigvalsh(U)[0]) > 0
        assert structure.project(arrays, 0.5) is arrays


def test_projection_lifts_scales_and_nothing_else() -> None:
    for name, scale in (("scalar", "u"), ("diagonal", "d"), ("ekfac", "D"), ("separable-ekfac", "d_Phi")):
        structure = make_structure(name, (3, 4))
        arrays = {n: -a for n, a in structure.identity(dtype=torch.float64).items()}
        lifted = structure.project(arrays, 1e-8)
        assert bool((lifted[scale] == 1e-8).all())
        assert all(lifted[n] is a for n, a in arrays.items() if n not in structure.scales)
    kronecker = make_structure("kronecker", (3, 4))
    arrays = kronecker.identity()
    assert all(kronecker.project(arrays, 2.0)[n] is a for n, a in arrays.items())


def test_rotation_is_undone_by_orthogonal_bases() -> None:
    structure = make_structure("ekfac", (3, 4))
    arrays = structure.identity((2,), torch.float64)
    for name in ("E_Psi", "E_Phi"):
        arrays[name] = torch.linalg.qr(arrays[name] + 0.5 * normal(*arrays[name].shape)).Q
    X = normal(2, 3, 4)
    turned = structure.in_bases(arrays, X)
    assert torch.allclose(turned, arrays["E_Psi"].mT @ X @ arrays["E_Phi"], rtol=0, atol=1e-14)
    assert torch.allclose(structure.out_of_bases(arrays, turned), X, rtol=0, atol=1e-14)


def test_counts_of_a_wide_convolution() -> None:
    shape = (512, 512 * 9)
    entries = {n: make_structure(n, shape).cost().entries for n in STRUCTURES}
    assert entries == {
        "scalar": 1,
        "diagonal": 2_359_296,
        "kronecker": 21_495_808,
        "ekfac": 23_855_104,
        "separable-ekfac": 21_500_928,
        "dense": 5_566_277_615_616,
    }
    full = make_structure("kronecker", shape)
    one_sided = make_structure("kronecker", shape, max_side=1024)
    blocks = make_structure("kronecker", shape, max_side=1024, wide="blocks")
    assert full.cost().apply == 2 * 512 * 4608 * (512 + 4608)
    assert one_sided.array_shapes() == {"Psi": (512, 512)}
    assert one_sided.cost() == (2 * 512 * 4608 * 512, 4 * 512 * 4608 * 512, 512**2)
    assert blocks.array_shapes() == {"Psi": (512, 512), "Phi": (6, 768, 768)}
    assert blocks.cost().entries == 512**2 + 6 * 768**2


def test_bad_structures_are_named() -> None:
    with pytest.raises(ValueError, match="'kronecker'"):
        make_structure("kroneker", (3, 4))
    with pytest.raises(ValueError, match="wide='thin'"):
        make_structure("ekfac", (3, 4), wide="thin")
    with pytest.raises(ValueError, match="max_side=-1"):
        make_structure("ekfac", (3, 4), max_side=-1)
    with pytest.raises(ValueError, match="two sides"):
        STRUCTURES["ekfac"]((3,))


@pytest.mark.parametrize("structure", every_structure(), ids=str)
def test_the_distance_to_the_identity_is_that_of_the_dense_matrix(structure: Structure) -> None:
    """Also for a U so close to I that squaring U first would lose every digit."""
    for scale in (1.0, 1e-9):
        start = structure.identity((2,), torch.float64)
        arrays = {n: torch.lerp(start[n], a, scale) for n, a in near_identity(structure, (2,)).items()}
        off = structure.to_dense(arrays) - torch.eye(structure.size, dtype=torch.float64)
        square = structure.squared_distance_to_identity(arrays)
        expected = off.square().flatten(-2).sum(-1)
        assert torch.allclose(square, expected, rtol=1e-6 if scale < 1 else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", every_structure(), ids=str)
def test_the_dense_matrix_has_the_precision_and_device_of_what_is_stored(
    structure: Structure, dtype: torch.dtype
) -> None:
    arrays = structure.identity((), dtype, "meta")
    U = structure.to_dense(arrays)
    assert not arrays or (U.dtype, U.device.type) == (dtype, "meta")
    assert U.shape == (structure.size, structure.size)
