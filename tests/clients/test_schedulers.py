"""Every scheduler of torch, around every optimizer of ours: its rates and momenta, and the steps that follow them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.clients import loops
from tests.clients.recipes import one_cycle

STEPS = 12
RATE = 0.01
PARTS = loops.batches(STEPS)
Make = Callable[[Optimizer], Any]
SCHEDULERS: dict[str, Make] = {
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], opt
    ),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 4),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, STEPS),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3, 2),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.001, 0.02, 3, cycle_momentum=True),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.8),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.0, STEPS),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 7], 0.1),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.02, STEPS),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, STEPS, 2.0),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(opt, 8)], [4]
    ),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 5),
}
CYCLE_MOMENTUM = {"CyclicLR", "OneCycleLR"}
BASES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda net: SGD(net.parameters(), lr=RATE, momentum=0.9),
    "AdamW": lambda net: AdamW(net.parameters(), lr=RATE),
}
WRAPPERS: dict[str, Callable[[Optimizer, nn.Module], Optimizer]] = {
    "SAM": lambda base, net: SAM(base),
    "LLQR": lambda base, net: LLQR(base, net),
    "LLQR on gradients": lambda base, net: LLQR(
        base, net, config=LLQRConfig(acts_on="gradient", step_rule="none")
    ),
    "LLQR+SAM": lambda base, net: SAM(LLQR(base, net)),
}
schedulers = pytest.mark.parametrize("scheduler", SCHEDULERS)
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)
bases = pytest.mark.parametrize("base", BASES)


def test_none_of_torch_is_missing() -> None:
    """A scheduler that a new torch brings belongs into the table above."""
    public = {
        name
        for name, item in vars(lr_scheduler).items()
        if inspect.isclass(item) and issubclass(item, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert public - {"LRScheduler"} == set(SCHEDULERS)


def settings(opt: Optimizer) -> dict[str, Any]:
    """What a scheduler may have changed."""
    group = opt.param_groups[0]
    return {name: group[name] for name in ("lr", "momentum", "betas") if name in group}


def advance(schedule: Any, t: int) -> None:
    """One step of the schedule; a plateau is told a loss that stalls."""
    if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        schedule.step(1.0 / min(t + 1, 3))
    else:
        schedule.step()


def trajectory(scheduler: str, base: str) -> list[dict[str, Any]]:
    """The bare base's settings at every step."""
    opt = BASES[base](loops.network())
    schedule = SCHEDULERS[scheduler](opt)
    found = []
    for t in range(STEPS):
        found.append(settings(opt))
        opt.step()
        advance(schedule, t)
    return found


def test_two_of_them_cycle_momentum() -> None:
    for scheduler in SCHEDULERS:
        for base in BASES:
            seen = trajectory(scheduler, base)
            momenta = {str({k: v for k, v in step.items() if k != "lr"}) for step in seen}
            assert (len(momenta) > 2) == (scheduler in CYCLE_MOMENTUM)
            assert len({step["lr"] for step in seen}) > 1


@schedulers
@wrappers
@bases
def test_steps_are_those_of_a_loop_that_sets_the_values_by_hand(
    scheduler: str, wrapper: str, base: str
) -> None:
    net, plain = loops.network(), loops.network()
    opt = WRAPPERS[wrapper](BASES[base](net), net)
    schedule = SCHEDULERS[scheduler](opt)
    other = WRAPPERS[wrapper](BASES[base](plain), plain)
    for t, (wanted, part) in enumerate(zip(trajectory(scheduler, base), PARTS, strict=True)):
        assert settings(opt) == wanted
        other.param_groups[0].update(wanted)
        assert loops.same(loops.plain_loop(net, opt, [[part]]), loops.plain_loop(plain, other, [[part]]))
        assert settings(opt) == wanted
        advance(schedule, t)


@schedulers
def test_sam_under_a_scheduler_is_sam_by_hand(scheduler: str) -> None:
    net = loops.network()
    opt = SAM(BASES["SGD"](net))
    schedule = SCHEDULERS[scheduler](opt)
    for t, part in enumerate(PARTS):
        loops.plain_loop(net, opt, [[part]])
        advance(schedule, t)
    wanted = trajectory(scheduler, "SGD")
    rates, momenta = ([step[name] for step in wanted] for name in ("lr", "momentum"))
    expected = loops.sam_by_hand(loops.network(), loops.grouped(PARTS, 1), lr=rates, momentum=momenta)
    assert loops.gap(loops.state(net), expected) < 1e-12


@pytest.mark.parametrize("wrapper", ["SAM", "LLQR+SAM"])
@bases
def test_the_recipe_is_the_plain_loop(wrapper: str, base: str) -> None:
    net, plain = loops.network(), loops.network()
    opt: Any = WRAPPERS[wrapper](BASES[base](net), net)
    one_cycle.train(net, opt, PARTS)
    other = WRAPPERS[wrapper](BASES[base](plain), plain)
    for wanted, part in zip(trajectory("OneCycleLR", base), PARTS, strict=True):
        other.param_groups[0].update(wanted)
        loops.plain_loop(plain, other, [[part]])
    assert loops.same(loops.state(net), loops.state(plain))


@schedulers
@wrappers
def test_a_schedule_that_was_saved_goes_on(scheduler: str, wrapper: str) -> None:
    """Optimizer and scheduler are saved in the middle and loaded into new ones."""
    net, resumed = loops.network(), loops.network()
    opt, other = (WRAPPERS[wrapper](BASES["SGD"](n), n) for n in (net, resumed))
    schedule, loaded = SCHEDULERS[scheduler](opt), SCHEDULERS[scheduler](other)
    for t, part in enumerate(PARTS):
        loops.plain_loop(net, opt, [[part]])
        if t >= STEPS // 2:
            loops.plain_loop(resumed, other, [[part]])
            advance(loaded, t)
        advance(schedule, t)
        if t == STEPS // 2 - 1:
            resumed.load_state_dict(net.state_dict())
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
            loaded.load_state_dict(copy.deepcopy(schedule.state_dict()))
    assert loops.same(loops.state(net), loops.state(resumed))
    assert settings(opt) == settings(other)
