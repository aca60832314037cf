"""The published preset reproduces the numbers that the authors' own code computed, to 1e-9."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR, SAM
from tests.exact import golden
from tests.optim._training import backward, weights

NUMBERS = golden.numbers()
STRUCTURES = {"scalar": "scalar", "diagonal": "diagonal", "kfac": "kronecker"}


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-9, atol=1e-9)


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    nn.utils.vector_to_parameters(torch.from_numpy(golden.ours(NUMBERS["tanh/theta"])), model.parameters())
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.from_numpy(NUMBERS["x"]), torch.from_numpy(NUMBERS["y"]).long()


def flat(tensors: list[Tensor] | list[Tensor | None]) -> Float[np.ndarray, " d"]:
    return torch.cat([t.detach().reshape(-1) for t in tensors if t is not None]).numpy()


def fitted(name: str, steps: int = 50) -> tuple[nn.Sequential, LLQR]:
    """The published preset after one refit, with the damping of the fixture and no averaging."""
    model = network()
    config = LLQRConfig.published(structure=STRUCTURES[name], damping=0.01, steps=steps, ema=0.0)
    opt = LLQR(torch.optim.SGD(model.parameters(), lr=1.0), model, nn.CrossEntropyLoss(), config)
    opt.refit(*batch())
    x, y = batch()
    backward(nn.functional.cross_entropy(model(x), y))
    return model, opt


def test_the_network_is_theirs() -> None:
    model = network()
    x, y = batch()
    loss = nn.functional.cross_entropy(model(x), y)
    close(loss.item(), NUMBERS["tanh/loss"])
    backward(loss)
    close(flat([p.grad for p in model.parameters()]), golden.ours(NUMBERS["tanh/g"]))


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_inner_loop_ends_where_theirs_does(name: str, steps: int) -> None:
    prefix = f"B_tanh/{name}/ngd/lam0.01/steps{steps}"
    model, opt = fitted(name, steps)
    close(flat(opt.preconditioned_gradients()), golden.ours(NUMBERS[f"{prefix}/Ug"]))
    for layer, module in enumerate(m for m in model if isinstance(m, nn.Linear)):
        bias, weight = opt.own.get(module.bias, {}), opt.own.get(module.weight, {})
        if name == "kfac":
            close(weight["Phi"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.kernel/A"])
            close(weight["Psi"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.kernel/B"])
            close(bias["d"], NUMBERS[f"{prefix}/layers_{layer}/Dense_0.bias/diag"])
        else:  # one array a layer, saved with its first parameter: the bias, then the kernel, ours transposed
            stored = torch.from_numpy(NUMBERS[f"{prefix}/layers_{layer}"])
            if name == "diagonal":
                kernel = stored[len(module.bias) :].view(module.in_features, module.out_features)
                stored = torch.cat([stored[: len(module.bias)], kernel.T.reshape(-1)])
            close(bias["u" if name == "scalar" else "d"].reshape(stored.shape), stored)


def test_the_preconditioned_step_is_the_gradient_step_with_their_direction() -> None:
    model, opt = fitted("diagonal")
    before = flat(weights(model))
    opt.step()
    change = flat(weights(model)) - before
    close(-change, golden.ours(NUMBERS["B_tanh/diagonal/ngd/lam0.01/steps50/Ug"]))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize(("norm", "theirs"), [("euclidean", "euclidean"), ("dual", "matrix_norm")])
def test_perturbations(norm: str, theirs: str, layerwise: bool) -> None:
    """Theirs are layer by layer, bias and kernel together; over all of them the two agree."""
    model, opt = fitted("diagonal")
    sam = SAM(opt, rho=0.05, norm=norm)
    wanted = golden.ours(NUMBERS[f"C/diagonal/ema_precond_grad/{'layer_' if layerwise else ''}{theirs}"])
    if layerwise:  # keep one layer's gradient at a time, with the radius of a share of three layers
        opt.param_groups[0]["rho"] = 0.05 / np.sqrt(3)
    gradients = [p.grad for p in model.parameters()]
    found = np.zeros_like(wanted)
    for layer in range(3) if layerwise else [None]:
        for index, (p, gradient) in enumerate(zip(model.parameters(), gradients, strict=True)):
            p.grad = gradient if layer is None or index // 2 == layer else None
        before = flat(weights(model))
        with sam.perturbed():
            found += flat(weights(model)) - before
    close(found, wanted)
