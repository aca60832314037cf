"""Models that change while they are trained: what is new begins at U = I and is refitted at once, the rest goes on.

After every operation U on what is new is that of a fresh LLQR on the changed model, and the step is held to its line,
w <- w - lr S sqrt(d)/|S| with S = U g over all parameters together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import SGD

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._training import backward, same, weights

loss_fn = nn.CrossEntropyLoss()
LR = 0.02
CONFIGS = {
    "closed form": LLQRConfig.sampled(every=100, probes=4, probe_vector="gradient"),
    "diagonal": LLQRConfig.sampled(every=100, probes=1, structure="diagonal", probe_vector="gradient"),
    "inner loop": LLQRConfig(**{
        **vars(LLQRConfig.published(divergence="gauss-newton", steps=3, every=100)),
        "step_rule": "rms",
    }),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def layer(model: nn.Module, index: int) -> Any:
    return list(model.children())[index]


def batch(t: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :3] + 0.3 * x[:, 1:]).argmax(1)


def llqr(model: nn.Module, config: LLQRConfig) -> Any:
    return LLQR(
        SGD(model.parameters(), lr=LR),
        model,
        loss_fn,
        config,
        probe=lambda: batch(100, next(model.parameters()).dtype),
    )


def slope(opt: Any, model: nn.Module, t: int) -> None:
    opt.zero_grad()
    x, y = batch(t, next(model.parameters()).dtype)
    backward(loss_fn(model(x), y))


def train(opt: Any, model: nn.Module, start: int, stop: int) -> list[Tensor]:
    for t in range(start, stop):
        slope(opt, model, t)
        if isinstance(opt, SAM):
            with opt.perturbed():
                slope(opt, model, t)
        opt.step()
    return weights(model)


def expect_step(opt: LLQR, model: nn.Module, t: int) -> None:
    """One step is its line, on every parameter that the model trains."""
    slope(opt, model, t)
    if opt.refit_due:
        opt.refit(*batch(100, next(model.parameters()).dtype))
    parameters = [p for group in opt.param_groups for p in group["params"]]
    S = {p: u for p, u in zip(parameters, opt.preconditioned_gradients(), strict=True) if u is not None}
    assert set(S) == {p for p in model.parameters() if p.requires_grad}
    squares, entries = sum(float(u.square().sum()) for u in S.values()), sum(map(Tensor.numel, S))
    expected = {p: p.detach() - LR * u * (entries / squares) ** 0.5 for p, u in S.items()}
    opt.step()
    for p, w in expected.items():
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-12)


def expect_fresh_curvature(opt: LLQR, model: nn.Module, parameters: list[Tensor]) -> None:
    """What is remembered of these parameters is what a fresh LLQR sees on the model as it is, taken whole."""
    base = SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    fresh = LLQR(base, model, loss_fn, opt.config)
    opt.refit(*batch(100))
    fresh.refit(*batch(100))
    for p in parameters:
        assert opt.own[p].keys() == fresh.own[p].keys()
        assert opt.own[p]["refits"] == 1
        torch.testing.assert_close(opt.own[p]["c"], fresh.own[p]["c"], rtol=1e-10, atol=1e-14)
        assert opt.own[p]["c"].any()


# What is new, by operation: the parameters that the operation brings into training.


def head_added(model: nn.Module, opt: LLQR) -> list[Tensor]:
    head = nn.Linear(6, 3).double()
    model.add_module("2", head)
    opt.add_param_group({"params": head.parameters()})
    return list(head.parameters())


def head_of_another_shape(model: nn.Module, opt: LLQR) -> list[Tensor]:
    head = nn.Linear(6, 5).double()
    model.add_module("2", head)
    opt.param_groups[0]["params"] = list(model.parameters())
    return list(head.parameters())


def deeper(model: nn.Module, opt: LLQR) -> list[Tensor]:
    more = nn.Linear(3, 3).double()
    model.add_module("3", more)
    opt.add_param_group({"params": list(more.parameters()), "lr": LR})
    return list(more.parameters())


def weight_norm(model: nn.Module, opt: LLQR) -> list[Tensor]:
    """Two new parameters take the place of the weight."""
    parametrizations.weight_norm(layer(model, 0))
    new: list[Tensor] = [p for name, p in model.named_parameters() if "original" in name]
    opt.param_groups[0]["params"] = list(model.parameters())
    return new


def narrower(model: nn.Module, opt: LLQR) -> list[Tensor]:
    """Units are taken out through .data; the parameters stay."""
    opt.zero_grad()
    first, last = layer(model, 0), layer(model, 2)
    first.weight.data, first.bias.data = first.weight.data[:5], first.bias.data[:5]
    last.weight.data = last.weight.data[:, :5]
    return [first.weight, first.bias, last.weight]


class Adapter(nn.Module):
    """A frozen layer with a trained addition of rank two."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, layer.in_features).double())
        self.up = nn.Parameter(torch.randn(layer.out_features, 2).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.layer.weight += self.up @ self.down
        return self.layer.requires_grad_(True)


def adapter(model: nn.Module, opt: LLQR) -> list[Tensor]:
    opt.zero_grad()
    added = Adapter(layer(model, 0))
    model.add_module("0", added)
    opt.add_param_group({"params": [added.down, added.up]})
    return [added.down, added.up]


OPERATIONS: dict[str, Callable[[nn.Module, LLQR], list[Tensor]]] = {
    "head added": head_added,
    "head of another shape": head_of_another_shape,
    "deeper": deeper,
    "weight norm": weight_norm,
    "narrower": narrower,
    "adapter": adapter,
}


@configs
@pytest.mark.parametrize("operate", OPERATIONS.values(), ids=OPERATIONS)
def test_what_is_new_is_refitted_at_once_and_steps_with_the_rest(
    operate: Callable[[nn.Module, LLQR], list[Tensor]], config: LLQRConfig
) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 3)
    assert not opt.refit_due
    operate(model, opt)
    assert opt.refit_due
    expect_step(opt, model, 3)
    assert not opt.refit_due
    train(opt, model, 4, 6)
    expect_step(opt, model, 6)


@pytest.mark.parametrize("structure", ["ekfac", "separable-ekfac", "diagonal", "dense"])
@pytest.mark.parametrize("operate", OPERATIONS.values(), ids=OPERATIONS)
def test_the_curvature_of_what_is_new_is_a_fresh_one_s(
    operate: Callable[[nn.Module, LLQR], list[Tensor]], structure: str
) -> None:
    model = network()
    opt = llqr(model, LLQRConfig(every=100, probes=4, structure=structure, probe_vector="gradient"))
    train(opt, model, 0, 3)
    expect_fresh_curvature(opt, model, operate(model, opt))


@configs
def test_a_thawed_layer_is_refitted_at_once(config: LLQRConfig) -> None:
    model = network()
    layer(model, 0).requires_grad_(False)
    opt = llqr(model, config)
    frozen = weights(layer(model, 0))
    train(opt, model, 0, 3)
    assert same(weights(layer(model, 0)), frozen)
    layer(model, 0).requires_grad_(True)
    assert opt.refit_due
    expect_step(opt, model, 3)
    assert not opt.refit_due


@configs
def test_a_layer_that_rests_keeps_what_was_learned(config: LLQRConfig) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    first = list(layer(model, 0).parameters())
    learned = {p: copy.deepcopy(dict(opt.own[p])) for p in first if p in opt.own}
    opt.zero_grad()
    layer(model, 0).requires_grad_(False)
    opt.refit(*batch(101))
    train(opt, model, 2, 4)
    layer(model, 0).requires_grad_(True)
    assert not opt.refit_due
    assert learned
    for p, entries in learned.items():
        assert all(
            torch.equal(torch.as_tensor(opt.own[p][k]), torch.as_tensor(v)) for k, v in entries.items()
        )
    expect_step(opt, model, 5)


@configs
def test_adapters_are_merged_and_removed(config: LLQRConfig) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    adapter(model, opt)
    train(opt, model, 2, 4)
    x, _ = batch(50)
    before = model(x)
    model.add_module("0", layer(model, 0).merged())
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    expect_step_with_strays(opt, model, 4)
    del opt.param_groups[1]
    expect_step(opt, model, 5)
    assert len(opt.state_dict()["state"]) <= 4


def expect_step_with_strays(opt: LLQR, model: nn.Module, t: int) -> None:
    """What has left the model stays as it is; the rest steps."""
    known = {id(p) for p in model.parameters()}
    strays = [p for group in opt.param_groups for p in group["params"] if id(p) not in known]
    before = [p.detach().clone() for p in strays]
    expect_step(opt, model, t)
    assert strays
    assert same([p.detach() for p in strays], before)


# Pruning and parametrizations that keep the parameter: nothing is new, and names change.


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(layer(model, 0), "weight", amount=0.5)  # type: ignore[no-untyped-call]


def unpruned(model: nn.Module) -> None:
    prune.remove(layer(model, 0), "weight")  # type: ignore[no-untyped-call]


KEEPING: dict[str, tuple[Callable[[nn.Module], object], Callable[[nn.Module], object]]] = {
    "pruned": (pruned, unpruned),
    "spectral norm": (
        lambda model: parametrizations.spectral_norm(layer(model, 0)),
        lambda model: parametrize.remove_parametrizations(layer(model, 0), "weight"),
    ),
    "orthogonal": (
        lambda model: parametrizations.orthogonal(layer(model, 0)),
        lambda model: parametrize.remove_parametrizations(layer(model, 0), "weight"),
    ),
}


@configs
@pytest.mark.parametrize(("put_on", "take_off"), KEEPING.values(), ids=KEEPING)
def test_masks_and_parametrizations_put_on_and_taken_off(
    put_on: Callable[[nn.Module], object], take_off: Callable[[nn.Module], object], config: LLQRConfig
) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    put_on(model)
    expect_step(opt, model, 2)
    opt.refit(*batch(101))
    expect_step(opt, model, 3)
    take_off(model)
    opt.refit(*batch(102))
    expect_step(opt, model, 4)


@configs
@pytest.mark.parametrize("put_on", [pair[0] for pair in KEEPING.values()], ids=KEEPING)
def test_masks_and_parametrizations_from_the_beginning(
    put_on: Callable[[nn.Module], object], config: LLQRConfig
) -> None:
    model = network()
    put_on(model)
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    expect_step(opt, model, 2)
