"""What a torch.optim citizen owes its users: one list (hence the length), every optimizer of ours, on two bases.

A factory takes a base optimizer, the model and the loss. Optimizers with a ``perturbed`` block are run with
both passes, those with ``refit_due`` are refitted when it says so.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW, Optimizer

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR, SAM, Adaptive, Fisher, Monge, frozen_batch_stats
from tests.optim._training import backward, same, weights

Loss = nn.CrossEntropyLoss
Factory = Callable[[Optimizer, nn.Module, Loss], Optimizer]
FACTORIES: dict[str, Factory] = {
    "SAM": lambda base, model, loss: SAM(base),
    "SAM every 2": lambda base, model, loss: SAM(base, every=2),
    "Friendly SAM": lambda base, model, loss: SAM(base, ascent_ema=0.9),
    "SAM+Monge": lambda base, model, loss: SAM(base, metric=Monge()),
    "SAM+Adaptive": lambda base, model, loss: SAM(base, metric=Adaptive()),
    "SAM+Fisher": lambda base, model, loss: SAM(base, metric=Fisher()),
    "llqr": lambda base, model, loss: LLQR(base, model, loss, LLQRConfig(every=2)),
    "llqr-published": lambda base, model, loss: LLQR(base, model, loss, LLQRConfig.published(every=2)),
    "sam-llqr": lambda base, model, loss: SAM(LLQR(base, model, loss, LLQRConfig(every=2))),
    "sam-llqr-published": lambda base, model, loss: SAM(
        LLQR(base, model, loss, LLQRConfig.published(every=2))
    ),
}
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": lambda parameters: AdamW(parameters, lr=0.01),
}
citizens = pytest.mark.parametrize(
    ("factory", "base"),
    [pytest.param(f, b, id=f"{x}-{y}") for x, f in FACTORIES.items() for y, b in BASES.items()],
)
pytestmark = citizens


@dataclass
class Run:
    """A model in training."""

    model: nn.Sequential
    opt: Any
    loss: Loss

    def accumulate(self, t: int, micro: int = 1, scaler: torch.amp.GradScaler | None = None) -> None:
        """The gradient of batch t, in ``micro`` equal parts."""
        for x, y in zip(*(part.chunk(micro) for part in batch(t)), strict=True):
            loss = self.loss(self.model(x), y) / micro
            backward(loss if scaler is None else scaler.scale(loss))

    def passes(self, t: int, micro: int = 1, scaler: torch.amp.GradScaler | None = None) -> None:
        """All that comes before the step, as the documentation writes it."""
        if getattr(self.opt, "refit_due", False):
            self.opt.refit(*batch(1000 + t))
        self.opt.zero_grad()
        self.accumulate(t, micro, scaler)
        if hasattr(self.opt, "perturbed"):
            with self.opt.perturbed(scaler), frozen_batch_stats(self.model):
                self.opt.zero_grad()
                self.accumulate(t, micro, scaler)

    def step(self, t: int, micro: int = 1, scaler: torch.amp.GradScaler | None = None) -> None:
        self.passes(t, micro, scaler)
        if scaler is None:
            self.opt.step()
        else:
            scaler.step(self.opt)
            scaler.update()

    def train(self, start: int, stop: int, **options: Any) -> list[Tensor]:
        """Steps start ... stop - 1, and the weights after them."""
        for t in range(start, stop):
            self.step(t, **options)
        return weights(self.model)

    def closure(self, t: int, losses: list[Tensor] | None = None) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            self.opt.zero_grad()
            loss = backward(self.loss(self.model(batch(t)[0]), batch(t)[1]))
            if losses is not None:
                losses.append(loss.detach().clone())
            return loss

        return evaluate


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] + 0.3 * x[:, 1:]).argmax(1)


def fresh(factory: Factory, base: Callable[[Any], Optimizer], seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    loss = nn.CrossEntropyLoss()
    return Run(model, factory(base(model.parameters()), model, loss), loss)


# Saving, loading, copying.


def test_resume_is_bitwise(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    run.train(0, 3)
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "opt": run.opt.state_dict()}, file)
    uninterrupted = run.train(3, 7)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = fresh(factory, base, seed=1)
    resumed.model.load_state_dict(saved["model"])
    resumed.opt.load_state_dict(saved["opt"])
    assert same(resumed.train(3, 7), uninterrupted)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
def test_resume_from_a_distributed_checkpoint_is_bitwise(
    factory: Factory, base: Any, flatten: bool, steps: int, tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    run = fresh(factory, base)
    run.train(0, steps)
    run.opt.zero_grad()
    state = {
        "model": run.model.state_dict(),
        "opt": get_optimizer_state_dict(run.model, run.opt, options=options),
    }
    state_dict_saver.save(state, checkpoint_id=tmp_path, no_dist=True)
    uninterrupted = run.train(steps, steps + 4)
    resumed = fresh(factory, base, seed=1)
    state = {
        "model": resumed.model.state_dict(),
        "opt": get_optimizer_state_dict(resumed.model, resumed.opt, options=options),
    }
    state_dict_loader.load(state, checkpoint_id=tmp_path, no_dist=True)
    resumed.model.load_state_dict(state["model"])
    set_optimizer_state_dict(resumed.model, resumed.opt, state["opt"], options=options)
    assert same(resumed.train(steps, steps + 4), uninterrupted)


def test_a_fresh_state_dict_loads(factory: Factory, base: Any) -> None:
    run, other = fresh(factory, base), fresh(factory, base)
    run.opt.load_state_dict(run.opt.state_dict())
    assert same(run.train(0, 3), other.train(0, 3))


def test_loading_keeps_the_dictionary_and_the_parameters(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    run.train(0, 2)
    saved = run.opt.state_dict()
    kept = copy.deepcopy(saved)
    other = fresh(factory, base)
    other.opt.load_state_dict(saved)
    assert pickle.dumps(saved["param_groups"]) == pickle.dumps(kept["param_groups"])
    assert saved["state"].keys() == kept["state"].keys()
    for key, entries in kept["state"].items():
        assert saved["state"][key].keys() == entries.keys()
    assert [id(p) for p in other.opt.param_groups[0]["params"]] == [id(p) for p in other.model.parameters()]


def test_a_deep_copy_continues_identically(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    torch.optim.lr_scheduler.StepLR(run.opt, 100)  # it patches `step`, which the copy must not share
    run.train(0, 3)
    other = copy.deepcopy(run)
    assert all(a is not b for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True))
    before = weights(run.model)
    continued = other.train(3, 6)
    assert same(weights(run.model), before)
    assert same(continued, run.train(3, 6))


def test_a_pickle_continues_identically(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    torch.optim.lr_scheduler.StepLR(run.opt, 100)
    run.train(0, 3)
    other = Run(*pickle.loads(pickle.dumps((run.model, run.opt, run.loss))))
    assert same(other.train(3, 6), run.train(3, 6))


# Exceptions, addresses.


@pytest.mark.parametrize("move", [lambda value: value, torch.clone], ids=["itself", "a copy"])
def test_the_state_may_be_written_back(factory: Factory, base: Any, move: Any) -> None:
    """Entry by entry, numbers too, as by a training loop that moves it to another device."""
    run, moved = fresh(factory, base), fresh(factory, base)
    for each in (run, moved):
        each.train(0, 3)
    for entries in moved.opt.state.values():
        for name, value in entries.items():
            entries[name] = move(value) if isinstance(value, Tensor) else value
    assert same(run.train(3, 7), moved.train(3, 7))


def test_what_is_written_into_the_state_is_what_is_used(factory: Factory, base: Any) -> None:
    """Tensors that cannot be copied into those that are there replace them: here in single precision."""
    run, moved = fresh(factory, base), fresh(factory, base)
    for each in (run, moved):
        each.train(0, 3)
    for entries in moved.opt.state.values():
        for name, value in entries.items():
            if name.startswith(("sam_", "llqr_")) and isinstance(value, Tensor):
                entries[name] = value.float()
                assert entries[name].dtype is torch.float32
    torch.testing.assert_close(moved.train(3, 5), run.train(3, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_weights_where_they_were(
    factory: Factory, base: Any, error: type[BaseException]
) -> None:
    run, other = fresh(factory, base), fresh(factory, base)
    run.train(0, 1)
    other.train(0, 1)
    before = weights(run.model)
    calls: list[int] = []

    def fails() -> Tensor:
        calls.append(1)
        if len(calls) == 2 or not hasattr(run.opt, "perturbed") or not run.opt.perturbation_due:
            raise error
        return run.closure(1)()

    with pytest.raises(error):
        run.opt.step(fails)
    assert same(weights(run.model), before)
    if hasattr(run.opt, "perturbed"):
        with pytest.raises(error), run.opt.perturbed():
            raise error
        assert same(weights(run.model), before)
        with run.opt.perturbed():  # and the next block is no nested one
            pass


def test_addresses_are_stable(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    addresses = [p.data_ptr() for p in run.model.parameters()]
    run.train(0, 4)
    assert [p.data_ptr() for p in run.model.parameters()] == addresses


# step().


def test_step_evaluates_the_closure_and_returns_the_first_loss(factory: Factory, base: Any) -> None:
    run, other = fresh(factory, base), fresh(factory, base)
    for t in range(4):
        two = hasattr(run.opt, "perturbed") and run.opt.perturbation_due
        losses: list[Tensor] = []
        first = run.loss(run.model(batch(t)[0]), batch(t)[1]).detach()
        if getattr(run.opt, "refit_due", False):
            run.opt.refit(*batch(1000 + t))
        with torch.no_grad():  # it enables gradients itself
            returned = run.opt.step(run.closure(t, losses))
        assert len(losses) == (2 if two else 1)
        assert torch.equal(returned.detach(), losses[0])
        assert torch.equal(losses[0], first)
    assert same(weights(run.model), other.train(0, 4))


def test_no_gradients_is_a_no_op(factory: Factory, base: Any) -> None:
    run, other = fresh(factory, base), fresh(factory, base)
    before = weights(run.model)
    for _ in range(3):
        run.opt.zero_grad()
        with ExitStack() as stack:
            if hasattr(run.opt, "perturbed"):
                stack.enter_context(run.opt.perturbed())
        assert run.opt.step() is None
        assert run.opt.step(None) is None
    assert same(weights(run.model), before)
    assert same(run.train(0, 3), other.train(0, 3))  # counters included


def test_hooks_fire_once_a_step(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    layers: dict[str, Any] = {"wrapper": run.opt}
    while hasattr(layers[next(reversed(layers))], "base"):
        inner = layers[next(reversed(layers))].base
        layers[f"base {len(layers)}"] = inner
    fired: list[str] = []
    for name, layer in layers.items():
        layer.register_step_pre_hook(lambda opt, args, kwargs, name=name: fired.append(f"{name} pre"))
        layer.register_step_post_hook(lambda opt, args, kwargs, name=name: fired.append(f"{name} post"))
    expected = sorted(f"{name} {when}" for name in layers for when in ("pre", "post"))
    run.step(0)
    assert sorted(fired) == expected
    fired.clear()
    run.opt.step(run.closure(1))
    assert sorted(fired) == expected
    for name, layer in layers.items():
        layer.register_state_dict_pre_hook(lambda opt, name=name: fired.append(f"{name} pre"))
        layer.register_state_dict_post_hook(lambda opt, state, name=name: fired.append(f"{name} post"))
        layer.register_load_state_dict_pre_hook(lambda opt, state, name=name: fired.append(f"{name} pre"))
        layer.register_load_state_dict_post_hook(lambda opt, name=name: fired.append(f"{name} post"))
    fired.clear()
    saved = run.opt.state_dict()
    assert sorted(fired) == expected
    fired.clear()
    run.opt.load_state_dict(saved)
    assert sorted(fired) == expected


# What trainers do around it.


@pytest.mark.parametrize("on_base", [False, True])
def test_schedulers_do_not_warn(factory: Factory, base: Any, on_base: bool) -> None:
    run = fresh(factory, base)
    scheduler = torch.optim.lr_scheduler.StepLR(run.opt.base if on_base else run.opt, 1, gamma=0.5)
    rate = run.opt.param_groups[0]["lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(3):
            run.step(t)
            scheduler.step()
    assert run.opt.param_groups[0]["lr"] == run.opt.base.param_groups[0]["lr"] == rate / 8


def test_a_grad_scaler_changes_nothing(factory: Factory, base: Any) -> None:
    run, plain = fresh(factory, base), fresh(factory, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    scaled = run.train(0, 6, scaler=scaler)
    assert scaler.get_scale() == 2.0**15
    for a, b in zip(scaled, plain.train(0, 6), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_grad_scaler_skips_what_overflowed(factory: Factory, base: Any) -> None:
    run, plain = fresh(factory, base), fresh(factory, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    run.step(0, scaler=scaler)
    before = weights(run.model)

    run.passes(0, scaler=scaler)
    for p in run.model.parameters():
        p.grad = torch.full_like(p, float("inf"))
    scaler.step(run.opt)
    scaler.update()
    assert same(weights(run.model), before)
    assert scaler.get_scale() == 2.0**11
    plain.step(0)
    plain.passes(0)  # and no step
    for a, b in zip(run.train(1, 4, scaler=scaler), plain.train(1, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_accumulation_equals_the_full_batch(factory: Factory, base: Any) -> None:
    run, full = fresh(factory, base), fresh(factory, base)
    for a, b in zip(run.train(0, 4, micro=4), full.train(0, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_clipping_belongs_before_the_step(factory: Factory, base: Any) -> None:
    run, plain = fresh(factory, base), fresh(factory, base)
    for t in range(3):
        run.passes(t)
        length = float(nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3 * 7.0**t))
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        assert float(nn.utils.get_total_norm(gradients)) == pytest.approx(1e-3 * 7.0**t, rel=1e-4)
        run.opt.step()
        plain.passes(t)
        for p in plain.model.parameters():
            assert p.grad is not None
            p.grad *= 1e-3 * 7.0**t / (length + 1e-6)
        plain.opt.step()
    for a, b in zip(weights(run.model), weights(plain.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    unclipped = fresh(factory, base).train(0, 3)
    assert max(float((a - b).abs().max()) for a, b in zip(weights(run.model), unclipped, strict=True)) > 1e-6


def test_a_parameter_without_a_gradient_stays_to_the_bit(factory: Factory, base: Any) -> None:
    """Perturbed by the first pass or not, decayed or not: without a gradient in the second there is no step."""
    run = fresh(factory, base)
    run.train(0, 3)
    first, _, last, _ = run.model.parameters()
    before = weights(run.model)
    run.passes(3)
    first.grad = None
    run.opt.step()
    assert torch.equal(first.detach(), before[0])
    assert not torch.equal(last.detach(), before[2])
    if (
        hasattr(run.opt, "perturbed") and run.opt.perturbation_due
    ):  # and without one in the first no perturbation
        run.opt.zero_grad()
        run.accumulate(4)
        last.grad = None
        before = weights(run.model)
        with run.opt.perturbed():
            assert torch.equal(last.detach(), before[2])
            assert not torch.equal(first.detach(), before[0])
        assert same(weights(run.model), before)


def test_zero_grad_may_keep_the_tensors(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    run.train(0, 1)
    run.opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in run.model.parameters())


# Groups.


def test_a_group_added_later_gets_every_option(factory: Factory, base: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    loss = nn.CrossEntropyLoss()
    run = Run(model, factory(base(model[0].parameters()), model, loss), loss)
    run.train(0, 2)
    run.opt.add_param_group({"params": list(model[2].parameters()), "lr": 0.02})
    first, second = run.opt.param_groups
    assert first.keys() == second.keys()
    assert second["lr"] == 0.02
    before = weights(model[2])
    run.train(2, 4)
    assert not same(weights(model[2]), before)
    resumed = Run(copy.deepcopy(model), None, loss)
    resumed.opt = factory(base(resumed.model[0].parameters()), resumed.model, loss)
    resumed.opt.add_param_group({"params": list(resumed.model[2].parameters())})
    resumed.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
    assert same(resumed.train(4, 6), run.train(4, 6))


def test_named_parameters_and_groups(factory: Factory, base: Any) -> None:
    run = fresh(factory, base)
    named = fresh(factory, lambda parameters: base(list(zip("abcd", parameters, strict=True))))
    assert named.opt.param_groups[0]["param_names"] == ["a", "b", "c", "d"]
    if not isinstance(getattr(run.opt, "metric", None), Adaptive):
        assert same(named.train(0, 3), run.train(0, 3))  # only Adaptive looks at names


def test_frozen_parameters_stay(factory: Factory, base: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[0].requires_grad_(False)
    loss = nn.CrossEntropyLoss()
    run = Run(model, factory(base(model.parameters()), model, loss), loss)
    before = weights(model[0])
    run.train(0, 3)
    assert same(weights(model[0]), before)


def test_it_is_a_torch_optimizer(factory: Factory, base: Any) -> None:
    opt: Any = fresh(factory, base).opt
    assert opt.param_groups is opt.base.param_groups
    assert opt.defaults is opt.base.defaults
    assert type(base([nn.Parameter(torch.zeros(1))])).__name__ in repr(opt)
    assert isinstance(opt, Optimizer)
