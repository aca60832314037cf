"""What a user's closure does, or leaves undone, between the two passes of ``SAM.step(closure)``.

Every step is held to a loop by hand: the gradient at w, the weights moved by rho g/|g|, the gradient there, and the
base's step from w with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._models import batch, network
from tests.optim._training import backward, same, weights

loss_fn = nn.CrossEntropyLoss()
RHO = 0.5


def slope(model: nn.Module, t: int = 0) -> Tensor:
    x, y = batch(t)
    return backward(loss_fn(model(x), y))


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def sam(model: nn.Module, **options: Any) -> SAM:
    return SAM(sgd(model), rho=RHO, **options)


def by_hand(steps: int) -> list[Tensor]:
    """The weights after some steps of SAM, without SAM."""
    model = network()
    base = sgd(model)
    parameters = list(model.parameters())
    for t in range(steps):
        w = weights(model)
        x, y = batch(t)
        g = torch.autograd.grad(loss_fn(model(x), y), parameters)
        length = torch.cat([part.flatten() for part in g]).norm()
        with torch.no_grad():
            for p, part in zip(parameters, g, strict=True):
                p.add_(RHO * part / length)
        there = torch.autograd.grad(loss_fn(model(x), y), parameters)
        with torch.no_grad():
            for p, before, part in zip(parameters, w, there, strict=True):
                p.copy_(before)
                p.grad = part
        base.step()
    return weights(model)


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


# How gradients may be cleared: in the closure, or before each step, with the tensors dropped or kept.


def zeroed(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


CLEARING: dict[str, Callable[[SAM, nn.Module], None]] = {
    "dropped": lambda opt, model: opt.zero_grad(),
    "kept": lambda opt, model: opt.zero_grad(set_to_none=False),
    "by the base": lambda opt, model: opt.base.zero_grad(),
    "by the model": lambda opt, model: model.zero_grad(set_to_none=False),
    "by hand": lambda opt, model: zeroed(model),
}


@pytest.mark.parametrize("clear", CLEARING.values(), ids=CLEARING)
@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("micro", [1, 4])
def test_wherever_gradients_are_cleared_the_step_is_right(
    clear: Callable[[SAM, nn.Module], None], where: str, micro: int
) -> None:
    model = network()
    opt = sam(model)
    for t in range(3):

        def closure(t: int = t) -> float:
            if where == "inside":
                clear(opt, model)
            x, y = batch(t)
            for part, labels in zip(x.chunk(micro), y.chunk(micro), strict=True):
                backward(loss_fn(model(part), labels) / micro)
            return 0.0

        if where == "outside":
            clear(opt, model)
        assert opt.step(closure) == 0.0
    close(weights(model), by_hand(3))


ADDED = r"closure adds to the gradient that parameter 0 had before.*zero_grad\(\) at the beginning.*perturbed"


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_closure_that_adds_to_earlier_gradients_is_refused(create_graph: bool) -> None:
    """Left by the step before, or accumulated by the loop around it; autograd adds in place or makes a new tensor."""
    model = network()
    opt = sam(model)

    def closure() -> Tensor:
        x, y = batch()
        loss: Tensor = loss_fn(model(x), y)
        torch.autograd.backward(loss, create_graph=create_graph)
        return loss

    opt.step(closure)
    before, counted, stream = weights(model), opt.param_groups[0]["sam_steps"], torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=ADDED):
            opt.step(closure)
        assert same(weights(model), before)
    assert opt.param_groups[0]["sam_steps"] == counted
    assert torch.equal(torch.get_rng_state(), stream)
    opt.zero_grad()
    slope(model, 1)  # the first of two micro-batches
    with pytest.raises(RuntimeError, match=ADDED):
        opt.step(closure)
    assert same(weights(model), before)
    opt.zero_grad()
    opt.step(closure)
    assert not any(p._backward_hooks for p in model.parameters())


def test_gradients_from_before_are_whole_while_the_closure_runs() -> None:
    """A closure may look at them before it clears them."""
    model = network()
    opt = sam(model)
    slope(model, 7)
    expected, seen = [p.grad.clone() for p in model.parameters() if p.grad is not None], []

    def closure() -> Tensor:
        seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        opt.zero_grad()
        return slope(model)

    opt.step(closure)
    assert same(seen[0], expected)
    close(weights(model), by_hand(1))


def test_a_gradient_that_only_one_parameter_kept_is_found() -> None:
    """It is in no graph of the closure, so that nothing is added to it, and it would be stepped by again."""
    model, extra = network(), nn.Parameter(torch.ones(2).double())
    opt = SAM(SGD([*model.parameters(), extra], lr=0.1))
    extra.grad = torch.ones(2).double()

    def closure() -> Tensor:
        model.zero_grad()
        return slope(model)

    with pytest.raises(RuntimeError, match="gradient that parameter 4 had before"):
        opt.step(closure)
    extra.grad.zero_()
    opt.step(closure)
    assert torch.equal(extra.detach(), torch.ones(2).double())


def test_where_nothing_is_perturbed_gradients_add_up_as_in_torch() -> None:
    model, plain = network(), network()
    opt, base = sam(model, start=5), sgd(plain)
    for t in range(3):
        slope(model, t + 10)
        slope(plain, t + 10)
        for each, net in ((opt, model), (base, plain)):
            each.step(partial(slope, net, t))
    assert same(weights(model), weights(plain))


def test_gradients_assigned_by_the_closure_count_as_made() -> None:
    model, done = network(), 0
    opt = sam(model)
    parameters = list(model.parameters())

    def closure() -> None:
        x, y = batch(done)
        for p, g in zip(parameters, torch.autograd.grad(loss_fn(model(x), y), parameters), strict=True):
            p.grad = g

    for done in range(2):  # noqa: B007  (the closure reads it)
        assert opt.step(closure) is None
    close(weights(model), by_hand(2))


# A closure that makes no gradients.


@pytest.mark.parametrize("clips", [False, True])
def test_after_a_block_a_closure_that_makes_no_gradients_is_evaluated_once(clips: bool) -> None:
    """Trainers hand such closures on in manual optimization: one that does nothing, or one that clips."""
    model, twin = network(), network()
    opt, plain = sam(model, ascent_ema=0.9), sam(twin, ascent_ema=0.9)
    calls: list[int] = []

    def closure() -> None:
        calls.append(1)
        if clips:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    for t in range(3):
        for each, m in ((opt, model), (plain, twin)):
            each.zero_grad()
            slope(m, t)
            with each.perturbed():
                each.zero_grad()
                slope(m, t)
        radius, averages = opt.realized_radius, [opt.own[p]["ema"].clone() for p in model.parameters()]
        opt.step(closure)
        if clips:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        plain.step()
        assert len(calls) == t + 1
        assert opt.realized_radius == radius
        assert same([opt.own[p]["ema"] for p in model.parameters()], averages)
    assert same(weights(model), weights(twin))


def test_after_a_block_a_closure_that_makes_gradients_does_both_passes() -> None:
    """The block was somebody's look at the neighborhood; the step is still SAM's."""
    model = network()
    opt = sam(model)
    for t in range(3):

        def closure(t: int = t) -> Tensor:
            opt.zero_grad()
            return slope(model, t)

        closure()
        with opt.perturbed():
            loss_fn(model(batch(t)[0]), batch(t)[1])
        opt.step(closure)
    close(weights(model), by_hand(3))


def test_without_a_block_the_step_is_the_base_s_and_it_is_said() -> None:
    model, plain, calls = network(), network(), []
    opt, base = sam(model), sgd(plain)

    def clip() -> None:
        calls.append(1)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    opt.step(clip)  # no gradients at all: no pass, no step
    assert len(calls) == 1
    slope(model)
    slope(plain)
    with pytest.warns(UserWarning, match="without a perturbation"):
        opt.step(clip)
    nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    base.step()
    assert len(calls) == 2
    assert same(weights(model), weights(plain))


# What a closure must not do.


def llqr(model: nn.Module) -> LLQR:
    return LLQR(sgd(model), model, loss_fn, LLQRConfig())


STEPPING: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = {
    "SAM": (sam, lambda opt: opt),
    "SAM, not due": (lambda model: sam(model, start=5), lambda opt: opt),
    "LLQR": (llqr, lambda opt: opt),
    "SAM(LLQR)": (lambda model: SAM(llqr(model)), lambda opt: opt),
    "LLQR inside SAM": (lambda model: SAM(llqr(model)), lambda opt: opt.base),
}


@pytest.mark.parametrize(("make", "stepped"), STEPPING.values(), ids=STEPPING)
def test_a_closure_that_steps_is_refused(
    make: Callable[[nn.Module], Any], stepped: Callable[[Any], Any]
) -> None:
    model = network()
    opt, before = make(model), weights(model)

    def closure() -> None:
        opt.zero_grad()
        slope(model)
        stepped(opt).step()

    with pytest.raises(RuntimeError, match=r"step\(\) inside the closure of step\(\).*take step\(\) out"):
        opt.step(closure)
    assert same(weights(model), before)
    opt.zero_grad()
    opt.step(lambda: slope(model))


def test_a_closure_that_perturbs_is_refused() -> None:
    model = network()
    opt, before = sam(model), weights(model)

    def closure() -> None:
        slope(model)
        with opt.perturbed():
            slope(model)

    with pytest.raises(RuntimeError, match=r"perturbed\(\) inside the closure.*at both places itself"):
        opt.step(closure)
    assert same(weights(model), before)
    assert not opt.inside_perturbation


SCHEDULERS: dict[str, tuple[type[Any], Callable[[Any], Any], str]] = {
    "step": (SGD, lambda opt: ExponentialLR(opt, 0.5), "lr of group 0"),
    "cycle": (AdamW, lambda opt: OneCycleLR(opt, 0.1, total_steps=50), "(lr|betas) of group 0"),
    "rate in a tensor": (AdamW, lambda opt: ExponentialLR(opt, 0.5), "lr of group 0"),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_closure_that_steps_a_scheduler_is_refused(name: str) -> None:
    kind, make, what = SCHEDULERS[name]
    model = network()
    opt = SAM(kind(model.parameters(), lr=torch.tensor(0.1) if "tensor" in name else 0.1))
    scheduler, before = make(opt), weights(model)

    def closure() -> None:
        opt.zero_grad()
        slope(model)
        scheduler.step()

    with pytest.raises(RuntimeError, match=f"closure changes {what}.*after opt.step"):
        opt.step(closure)
    assert same(weights(model), before)


def test_a_closure_may_set_a_rate() -> None:
    model, plain = network(), network()
    opt, other = sam(model), sam(plain)

    def closure() -> Tensor:
        opt.zero_grad()
        opt.param_groups[0]["lr"] = 0.05
        return slope(model)

    opt.step(closure)
    other.param_groups[0]["lr"] = 0.05
    other.step(lambda: slope(plain))
    assert same(weights(model), weights(plain))


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_closure_that_raises_leaves_weights_and_the_random_stream(fails_at: int) -> None:
    model = network()
    opt, before, calls = sam(model), weights(model), []

    def closure() -> Tensor:
        opt.zero_grad()
        calls.append(torch.rand(1))
        loss = slope(model)
        if len(calls) == fails_at:
            torch.rand(3)
            raise KeyError("the loader's")
        return loss

    torch.manual_seed(5)
    with pytest.raises(KeyError):
        opt.step(closure)
    assert same(weights(model), before)
    assert opt.param_groups[0]["sam_steps"] == 0
    if fails_at == 2:  # the stream goes on after the first pass
        after = torch.rand(1)
        torch.manual_seed(5)
        torch.rand(1)
        assert torch.equal(after, torch.rand(1))
        assert torch.equal(calls[0], calls[1])
    assert not any(p._backward_hooks for p in model.parameters())
    model.zero_grad()
    opt.step(lambda: slope(model))
