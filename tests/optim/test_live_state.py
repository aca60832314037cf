"""``opt.state`` is the base's, live: what is read is what the next step uses, what is written takes effect."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._models import batch, network
from tests.optim._training import backward, same, weights

loss_fn = nn.CrossEntropyLoss()
CONFIG = LLQRConfig(every=100, probes=4, structure="diagonal")


def layer(model: nn.Module, index: int) -> Any:
    """A linear layer of ``network()``."""
    return list(model.children())[index]


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.02, momentum=0.9)


def llqr(model: nn.Module, config: LLQRConfig = CONFIG) -> LLQR:
    return LLQR(sgd(model), model, loss_fn, config, probe=lambda: batch(100))


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "SAM": lambda model: SAM(sgd(model)),
    "Friendly SAM": lambda model: SAM(sgd(model), ascent_ema=0.9),
    "Friendly SAM of AdamW": lambda model: SAM(AdamW(model.parameters(), lr=0.02), ascent_ema=0.9),
    "LLQR": llqr,
    "LLQR, inner loop": lambda model: llqr(model, LLQRConfig.published(every=100, steps=3)),
    "Friendly SAM of LLQR": lambda model: SAM(llqr(model), ascent_ema=0.9),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def train(opt: Any, model: nn.Module, start: int, stop: int) -> list[Tensor]:
    for t in range(start, stop):

        def closure(t: int = t) -> Tensor:
            opt.zero_grad()
            x, y = batch(t)
            return backward(loss_fn(model(x), y))

        opt.step(closure)
    return weights(model)


def trained(make: Callable[[nn.Module], Any], steps: int = 3) -> tuple[nn.Module, Any]:
    model = network()
    opt = make(model)
    train(opt, model, 0, steps)
    return model, opt


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


FORGETTING: dict[str, Callable[[Any], object]] = {
    "clear": lambda opt: opt.state.clear(),
    "assign": lambda opt: setattr(opt, "state", defaultdict(dict)),
    "delete each": lambda opt: [opt.state.pop(p) for p in list(opt.state)],
}


@kinds
@pytest.mark.parametrize("forget", FORGETTING.values(), ids=FORGETTING)
def test_a_state_that_is_cleared_is_a_fresh_optimizer_s(
    make: Callable[[nn.Module], Any], forget: Callable[[Any], object]
) -> None:
    model, opt = trained(make)
    twin = copy.deepcopy(model)
    forget(opt)
    assert len(opt.state) == 0
    fresh = make(twin)
    close(train(opt, model, 3, 7), train(fresh, twin, 3, 7))


@kinds
def test_what_is_read_is_what_is_saved(make: Callable[[nn.Module], Any]) -> None:
    _, opt = trained(make)
    saved = opt.state_dict()["state"]
    parameters = [p for group in opt.param_groups for p in group["params"]]
    assert len(opt.state) == len(saved) == len(parameters)
    for index, p in enumerate(parameters):
        assert p in opt.state
        assert dict(opt.state[p]).keys() == saved[index].keys()
        assert all(opt.state[p][name] is value for name, value in saved[index].items())


@kinds
def test_momentum_may_be_edited_and_replaced(make: Callable[[nn.Module], Any]) -> None:
    """Zeroed in place, or by other tensors: the same step, as if momentum began there."""
    runs = []
    for replace in (False, True):
        model, opt = trained(make)
        for entries in opt.state.values():
            for name in ("momentum_buffer", "exp_avg"):
                if name in entries and replace:
                    entries[name] = torch.zeros_like(entries[name])
                elif name in entries:
                    entries[name].zero_()
        runs.append((model, opt, train(opt, model, 3, 5)))
    assert same(runs[0][2], runs[1][2])
    untouched = trained(make)
    assert not same(runs[0][2], train(untouched[1], untouched[0], 3, 5))


@kinds
def test_moving_all_tensors_as_loops_do_changes_nothing(make: Callable[[nn.Module], Any]) -> None:
    """``for s in opt.state.values(): for k, v in s.items(): s[k] = v.to(device)`` is written in many a loop."""
    model, opt = trained(make)
    other, plain = trained(make)
    for entries in opt.state.values():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                entries[name] = value.clone().to("cpu")
    assert same(train(opt, model, 3, 6), train(plain, other, 3, 6))


def test_U_may_be_edited_where_it_is_read() -> None:
    model, opt = trained(llqr)
    weight = layer(model, 0).weight
    saved = {name for name in opt.state[weight] if name.startswith("llqr_")}
    stored = {name for name in saved if isinstance(opt.state[weight][name], Tensor)}
    assert stored
    before = opt.preconditioned_gradients()[0]
    for name in stored - {"llqr_c"}:  # the curvature that U was made of is not U
        opt.state[weight][name] = torch.full_like(opt.state[weight][name], 2.0)
    after = opt.preconditioned_gradients()[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after / weight.grad, (after / weight.grad)[0, 0].expand(6, 4))


def test_entries_keep_their_kind_and_are_not_deleted_one_by_one() -> None:
    model, opt = trained(llqr)
    weight = layer(model, 0).weight
    opt.state[weight]["llqr_refits"] = 5
    assert opt.own[weight]["refits"] == 5
    with pytest.raises(KeyError, match="'llqr_refits' cannot become a Tensor; clear the state to forget it"):
        opt.state[weight]["llqr_refits"] = torch.zeros(1)
    with pytest.raises(KeyError, match="clear the state to forget it"):
        del opt.state[weight]["llqr_refits"]
    opt.state[weight]["mine"] = 3
    assert opt.base.state[weight]["mine"] == 3
    with pytest.raises(KeyError):
        del opt.state[torch.zeros(1)]


def test_after_clearing_a_refit_is_due_and_U_is_the_identity() -> None:
    model, opt = trained(llqr)
    assert not opt.refit_due
    opt.state.clear()
    assert opt.refit_due
    opt.probe = None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found = [g for g in opt.preconditioned_gradients() if g is not None]
    assert same(found, gradients)


@kinds
def test_a_copy_has_a_state_of_its_own(make: Callable[[nn.Module], Any]) -> None:
    model, opt = trained(make)
    other, _ = copy.deepcopy((opt, model))
    other.state.clear()
    twin_model, twin = trained(make)
    assert same(train(opt, model, 3, 5), train(twin, twin_model, 3, 5))


# Parameters that have left their group.


@kinds
@pytest.mark.parametrize("leaves", ["the group", "the group and the model", "with its group"])
def test_parameters_that_left_are_not_saved(make: Callable[[nn.Module], Any], leaves: str) -> None:
    model, opt = trained(make)
    removed = layer(model, 2)
    if leaves == "with its group":
        opt.param_groups[0]["params"] = list(removed.parameters())
        opt.add_param_group({"params": layer(model, 0).parameters()})
        del opt.param_groups[0]
    else:
        opt.param_groups[0]["params"] = list(layer(model, 0).parameters())
    if leaves == "the group and the model":
        head = nn.Linear(6, 3).double().requires_grad_(False)
        head.load_state_dict(removed.state_dict())
        model.add_module("2", head)
    remembered = len(opt.base.state)
    saved = opt.state_dict()
    assert len(opt.base.state) == remembered  # saving has changed nothing
    assert set(saved["state"]) <= {0, 1}
    before = weights(removed)
    train(opt, model, 3, 5)
    assert same(weights(removed), before)
    assert set(opt.state_dict()["state"]) == {0, 1}


# Objects that imitate an optimizer, as training frameworks hand them out.


class Proxy:
    """Reads through to an optimizer, and keeps what is written to it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.__class__ = type("Imitation", (Proxy, type(inner)), {})  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@kinds
def test_through_an_object_that_imitates_it(make: Callable[[nn.Module], Any]) -> None:
    """Blocks, refits and steps that are asked of the imitation are the optimizer's."""
    model, plain_model = network(), network()
    inner, plain = make(model), make(plain_model)
    opt: Any = Proxy(inner)
    for t in range(4):
        for each, net in ((opt, model), (plain, plain_model)):
            x, y = batch(t)
            each.zero_grad()
            backward(loss_fn(net(x), y))
            if hasattr(plain, "perturbed"):
                with each.perturbed():
                    assert each.inside_perturbation
                    with pytest.raises(RuntimeError, match="inside perturbed"):
                        each.step()
                    each.zero_grad()
                    backward(loss_fn(net(x), y))
                assert each.realized_radius > 0
            elif each.refit_due:
                each.refit(*batch(100))
            each.step(lambda: None)
    assert not inner.inside_perturbation
    assert same(weights(model), weights(plain_model))
    assert repr(opt.state_dict()["param_groups"]) == repr(plain.state_dict()["param_groups"])
    if hasattr(plain, "perturbed"):
        assert inner.realized_radius == plain.realized_radius
