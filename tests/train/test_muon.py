"""Muon's two rules against closed forms and torch's own optimizers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.train.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_singular_values_go_through_the_polynomial(shape: tuple[int, int]) -> None:
    """The iteration never mixes singular vectors, so it is five times a polynomial of the singular values."""
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    p, (a, b, c) = s / s.norm(), COEFFICIENTS
    for _ in range(ITERATIONS):
        p = a * p + b * p**3 + c * p**5
    torch.testing.assert_close(orthogonalize(matrix), U @ torch.diag(p) @ Vh, rtol=1e-11, atol=1e-12)


def test_orthogonal_matrices_come_out_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(30, 20)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 2)), torch.zeros(3, 2))


def steps(optimizer: Any, parameters: Sequence[Tensor], count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_matrices_step_as_torchs_muon() -> None:
    """Up to torch's bfloat16 inside the iteration."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 8))]
    theirs = copy.deepcopy(ours)
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    mine = steps(Muon([{"params": ours, "rule": "muon"}], **options), ours)
    torchs = steps(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options), theirs)
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_vectors_step_as_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5).double()), nn.Parameter(torch.randn(2, 3).double())]
    theirs = copy.deepcopy(ours)
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.3}
    mine = steps(Muon(ours, **options), ours)
    torchs = steps(torch.optim.AdamW(theirs, **options), theirs)
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_a_convolution_is_the_matrix_of_its_rows() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2).double())
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    a = steps(Muon([{"params": [kernel], "rule": "muon"}], lr=0.1), [kernel])
    matrix_optimizer = Muon([{"params": [matrix], "rule": "muon"}], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        matrix.grad = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64).flatten(1)
        matrix_optimizer.step()
    torch.testing.assert_close(a[0].flatten(1), matrix.detach(), rtol=1e-13, atol=1e-13)


def test_parameters_without_gradient_stay() -> None:
    still = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [still], "rule": "muon"}])
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(still.detach(), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum"),
        ({"rule": "mun"}, "'muon'"),
        ({"rule": "muon"}, "(3,)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError) as caught:
        Muon([nn.Parameter(torch.zeros(3))], **options)
    assert word in str(caught.value)
