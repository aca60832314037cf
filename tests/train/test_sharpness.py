"""Lanczos finds the top eigenvalue, and its residual says how well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.nets import ResNet, mlp
from llqr_sam_ref.nets.resnet import BasicBlock
from llqr_sam_ref.train.sharpness import sharpness, top_eigenvalue


@pytest.mark.parametrize("shift", [0.0, -3.0, 2.0])
def test_top_eigenvalue_of_a_matrix(shift: float) -> None:
    """The largest, not the largest in absolute value; an eigenvalue lies within the residual."""
    torch.manual_seed(0)
    half = torch.randn(30, 30, dtype=torch.float64)
    matrix = half @ half.T / 30 + shift * torch.eye(30, dtype=torch.float64)
    values = torch.linalg.eigvalsh(matrix)
    found = top_eigenvalue(lambda v: matrix @ v, torch.ones(30, dtype=torch.float64), 30, 1e-10)
    assert found["top_eigenvalue"] == pytest.approx(float(values[-1]), rel=1e-9)
    rough = top_eigenvalue(lambda v: matrix @ v, torch.ones(30, dtype=torch.float64), 6, 0.0)
    distance = float((values - rough["top_eigenvalue"]).abs().min())
    assert distance <= rough["residual"] * abs(rough["top_eigenvalue"]) + 1e-12
    assert rough["top_eigenvalue"] <= float(values[-1]) + 1e-12
    assert rough["products"] == 6


def test_a_small_space_is_exhausted() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))
    found = top_eigenvalue(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64))
    assert found["products"] == 2
    assert found["top_eigenvalue"] == pytest.approx(2.0, rel=1e-12)
    assert top_eigenvalue(torch.zeros_like, torch.ones(3))["top_eigenvalue"] == 0.0


def dense_hessian(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names, parameters = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([p.detach().flatten() for p in parameters])

    def loss(w: Tensor) -> Tensor:
        parts = torch.split(w, [p.numel() for p in parameters])
        new = {n: part.view_as(p) for n, part, p in zip(names, parts, parameters, strict=True)}
        return loss_fn(torch.func.functional_call(model, new, (x,)), y)  # type: ignore[no-any-return]

    return torch.func.hessian(loss)(flat)


def test_sharpness_of_a_network_equals_the_dense_hessians() -> None:
    torch.manual_seed(0)
    model, loss_fn = mlp((5, 6, 3), "tanh").double(), nn.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    found = sharpness(model, loss_fn, x, y, rho=0.2)
    top = float(torch.linalg.eigvalsh(dense_hessian(model, loss_fn, x, y))[-1])
    assert found["top_eigenvalue"] == pytest.approx(top, rel=2e-3)
    loss = loss_fn(model(x), y)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    length = torch.cat([g.flatten() for g in gradient]).norm()
    assert found["gradient_norm"] == pytest.approx(float(length), rel=1e-10)
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradient, strict=True):
            p.add_(0.2 * g / length)
        assert found["sam_sharpness"] == pytest.approx(
            float(loss_fn(model(x), y)) - float(loss.detach()), rel=1e-8
        )


def test_sharpness_leaves_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1,), 3, width=4)
    model(torch.randn(4, 3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.head.eval()
    flags = [module.training for module in model.modules()]
    values = sharpness(
        model, nn.CrossEntropyLoss(), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), 0.05
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert values["top_eigenvalue"] > 0


def test_zero_gradient_has_no_sharpness() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    found = sharpness(model, nn.MSELoss(), torch.ones(3, 2), torch.zeros(3, 1), rho=0.1)
    assert found["sam_sharpness"] == 0.0
    assert found["top_eigenvalue"] == pytest.approx(4.0, rel=1e-5)
