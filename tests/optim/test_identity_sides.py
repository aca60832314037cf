"""Sides without an array are the identity wherever the others are, in their precision, whatever the default device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR, SAM
from llqr_sam_ref.optim.structures.base import Structure
from llqr_sam_ref.optim.structures.dense import Dense
from llqr_sam_ref.optim.structures.ekfac import EKFAC, SeparableEKFAC
from llqr_sam_ref.optim.structures.elementwise import Scalar
from llqr_sam_ref.optim.structures.kronecker import Kronecker

M, N = 2, 4
SIDES: dict[str, Structure] = {
    f"{kind.__name__}, {sides}": kind(shape, positive, max_side, wide)
    for kind in (Kronecker, EKFAC, SeparableEKFAC)
    for sides, shape, max_side, wide, positive in (
        ("Phi is I", (M, N), 3, "identity", False),
        ("Psi is I", (N, M), 3, "identity", False),
        ("both are I", (M, N), 1, "identity", False),
        ("none by choice", (M, N), 0, "blocks", False),
        ("blocks", (M, N), 2, "blocks", False),
        ("positive", (M, N), 3, "identity", True),
    )
}
OTHERS: dict[str, Structure] = {"Dense": Dense((M, N)), "Scalar": Scalar((M, N))}
ALL = {**SIDES, **OTHERS}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def arrays(structure: Structure, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    start = structure.identity((), torch.float64, "cpu")
    return {name: (a + 0.1 * torch.randn_like(a)).to(dtype) for name, a in start.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_the_matrix_is_what_U_does_in_every_precision(name: str, dtype: torch.dtype) -> None:
    structure = ALL[name]
    kept = arrays(structure, dtype)
    U = structure.to_dense(kept)
    assert U.dtype == (dtype if kept else torch.float64)
    wide = {n: a.double() for n, a in kept.items()}
    size = M * N
    units = torch.eye(size, dtype=torch.float64).view(size, *structure.shape)
    columns = torch.stack([structure.apply(wide, unit).flatten() for unit in units], 1)
    assert torch.allclose(U.double(), columns, rtol=0, atol=40 * torch.finfo(dtype).eps)
    far = structure.squared_distance_to_identity(kept)
    assert far.dtype == torch.float64
    expected = (columns - torch.eye(size, dtype=torch.float64)).square().sum()
    assert torch.allclose(far, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_everything_is_where_the_arrays_are(name: str) -> None:
    structure = ALL[name]
    there = {n: a.to("meta") for n, a in arrays(structure, torch.float32).items()}
    X = torch.empty(structure.shape, device="meta")
    assert structure.apply(there, X).device.type == "meta"
    assert all(a.device.type == "meta" for a in structure.pullback(there, X, X).values())
    assert structure.to_dense(there).device.type == ("meta" if there else "cpu")
    assert structure.squared_distance_to_identity(there).device.type == ("meta" if there else "cpu")


@pytest.mark.parametrize("name", ALL)
def test_the_default_device_does_not_matter(name: str) -> None:
    structure = ALL[name]
    kept = arrays(structure, torch.float64)
    expected = structure.to_dense(kept), structure.squared_distance_to_identity(kept)
    with torch.device("meta"):
        ours = structure.to_dense(kept), structure.squared_distance_to_identity(kept)
    for a, b in zip(ours, expected, strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


CONFIGS: dict[str, LLQRConfig] = {
    "default": LLQRConfig(probes=2, max_side=3),
    "absolute": LLQRConfig(probes=2, max_side=0).replace(damping_kind="absolute", damping=0.1),
    "kronecker": LLQRConfig(probes=2, structure="kronecker", max_side=3),
    "on the gradient": LLQRConfig(probes=2, acts_on="gradient"),
    "published": LLQRConfig.published(steps=2, max_side=3),
    "fisher": LLQRConfig.published(
        steps=2, structure="kronecker", max_side=3, divergence="fisher", probe_vector="sampled", probes=2
    ),
}


def trained(config: LLQRConfig, device: Any) -> list[Any]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.randn(8, 4).double(), torch.arange(8) % 3
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), module, functional.cross_entropy, config
    )
    sam = SAM(opt, 0.1)
    with torch.device(device):
        for _ in range(2):
            opt.refit(x, y)
            sam.zero_grad()
            functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            with sam.perturbed():
                sam.zero_grad()
                functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            sam.step()
        report = [block.distance for block in opt.report()]
        gain = opt.quadratic_gain(x, y)
    return [*(p.detach().clone() for p in module.parameters()), torch.tensor([*report, gain], device="cpu")]


@pytest.mark.parametrize("config", CONFIGS)
def test_training_is_the_same_under_another_default_device(config: str) -> None:
    expected, ours = trained(CONFIGS[config], "cpu"), trained(CONFIGS[config], "meta")
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
