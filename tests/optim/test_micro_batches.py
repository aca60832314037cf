"""Probes are the gradients of their micro-batches, and with sampled labels their covariance is the Fisher matrix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from llqr_sam_ref.nets import mlp
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.likelihood import Categorical, Gaussian, infer_likelihood
from llqr_sam_ref.optim.probes.gradients import batch_gradients, sampled_gradients
from tests.optim._models import CASES, case, flat


@pytest.mark.parametrize("name", CASES)
def test_probes_are_the_gradients_of_their_micro_batches(name: str) -> None:
    module, loss_fn, x, y = case(name)
    x, y = torch.cat((x[:2], x[:2].flip(0))), torch.cat((y[:2], y[1:3]))
    likelihood = infer_likelihood(loss_fn)
    with torch.no_grad():
        z = module(x)
    u = torch.rand(likelihood.uniforms_shape(tuple(z.shape)), dtype=torch.float64)
    labels = likelihood.sample(z, y, u)
    sampled = sampled_gradients(module, likelihood, x, y, u, probes=2)
    given = batch_gradients(module, loss_fn, x, y, probes=2)
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert sampled.keys() == given.keys() == trainable.keys()
    for j in range(2):
        part = slice(2 * j, 2 * j + 2)
        outputs = module(x[part].clone())
        score = likelihood.score(outputs.detach(), labels[part]) / likelihood.terms(outputs.detach(), y[part])
        expected = torch.autograd.grad(outputs, list(trainable.values()), score)
        loss = loss_fn(module(x[part].clone()), y[part])
        slopes = torch.autograd.grad(loss, list(trainable.values()))
        for n, e, s in zip(trainable, expected, slopes, strict=True):
            assert torch.allclose(sampled[n][j], e, rtol=1e-11, atol=1e-13)
            assert torch.allclose(given[n][j], s, rtol=1e-11, atol=1e-13)


def test_probes_against_sampled_labels_have_the_fisher_matrix_as_covariance() -> None:
    module = mlp((2, 3, 2), "tanh").double()
    torch.manual_seed(0)
    draws, m = 20_000, 2
    x = torch.randn(m, 2).double()
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(draws * m, generator=generator, dtype=torch.float64)
    V = sampled_gradients(module, Categorical(), x.repeat(draws, 1), None, u, probes=draws)
    rows = torch.cat([V[n].reshape(draws, -1) for n in V], 1)
    lin = Linearization(module, nn.CrossEntropyLoss(), x, torch.zeros(m, dtype=torch.long))
    names, sizes = list(V), [V[n][0].numel() for n in V]
    F = []
    for e in torch.eye(sum(sizes)).double():
        parts = zip(names, torch.split(e, sizes), strict=True)
        F.append(flat(lin.fisher({n: p.view_as(V[n][0]) for n, p in parts}, "mean")))
    fisher = torch.stack(F)
    deviation = (rows.T @ rows * (m / draws) - fisher).abs().max() / fisher.abs().max()
    assert float(rows.mean(0).abs().max()) < 0.01
    assert float(deviation) < 0.03


def test_nothing_of_the_module_changes() -> None:
    module, loss_fn, x, y = case("residual block, batch norm")
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        V = batch_gradients(module, loss_fn, x, y, probes=5)
    assert all(v.dtype == torch.float64 and not v.requires_grad for v in V.values())
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": 3}, "probes=3 does not divide the 4"),
        ({"probes": 0}, "probes=0"),
        ({"inputs": torch.randn(4, 5)}, r"shapes \[\(4, 5\)\]"),
        ({"inputs": torch.full((4, 2), torch.inf)}, "not finite"),
        ({"uniforms": torch.rand(3)}, r"\[4, 3\] examples"),
        ({"likelihood": Gaussian()}, "no gradients"),
        ({"module": nn.Sequential(nn.Linear(2, 3), nn.Dropout())}, r"1 \(Dropout\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "module": mlp((2, 3)),
        "likelihood": Categorical(),
        "inputs": torch.randn(4, 2),
        "targets": None,
        "uniforms": torch.rand(4),
        "probes": 2,
    }
    with pytest.raises(ValueError, match=message):
        sampled_gradients(**(arguments | change))
