"""Models that are moved, cast, copied, compiled, loaded or materialized after the optimizer was built."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._training import backward, same, weights
from tests.optim.test_surgery import (
    CONFIGS,
    batch,
    configs,
    expect_step,
    head_of_another_shape,
    layer,
    llqr,
    network,
    train,
)

loss_fn = nn.CrossEntropyLoss()
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "SAM": lambda model: SAM(SGD(model.parameters(), lr=0.02, momentum=0.9), ascent_ema=0.9),
    "LLQR": lambda model: llqr(model, CONFIGS["closed form"]),
    "LLQR, inner loop": lambda model: llqr(model, CONFIGS["inner loop"]),
    "SAM(LLQR)": lambda model: SAM(llqr(model, CONFIGS["closed form"])),
}
LEARNING = ("LLQR", "LLQR, inner loop", "SAM(LLQR)")
wrappers = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)


@contextmanager
def swapping(swap: bool) -> Iterator[None]:
    """Inside, ``module.to`` swaps tensors instead of assigning ``.data``, or not."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


# Cast.


@configs
@pytest.mark.parametrize("swap", [False, True])
def test_cast_in_the_middle_the_step_is_that_of_its_precision(config: LLQRConfig, swap: bool) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    opt.zero_grad()
    wide = {name: p.detach().clone() for name, p in model.named_parameters()}
    learned = [e["refits"] for e in opt.own.values()]
    with swapping(swap):
        model.float()
    opt.refit(*batch(100, torch.float32))
    assert all(
        v.dtype is torch.float32 for e in opt.own.values() for v in e.values() if isinstance(v, Tensor)
    )
    assert [e["refits"] for e in opt.own.values()] == [count + 1 for count in learned]
    train(opt, model, 2, 4)
    opt.zero_grad()
    model.double()
    expect_step(opt, model, 4)
    for name, p in model.named_parameters():
        assert not torch.equal(p.detach(), wide[name])


@wrappers
def test_cast_before_training_is_built_so(make: Callable[[nn.Module], Any]) -> None:
    model, other = network(torch.float32), network(torch.float32).double()
    opt = make(model)
    model.double()
    found = train(opt, model, 0, 4)
    for a, b in zip(found, train(make(other), other, 0, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# Loaded.


@wrappers
@pytest.mark.parametrize("whole", [True, False])
def test_weights_copied_in_place_are_the_weights(make: Callable[[nn.Module], Any], whole: bool) -> None:
    """Loading writes to the parameters that the optimizer holds."""
    model, other = network(), network()
    opt, twin = make(model), make(other)
    train(opt, model, 0, 2)
    train(twin, other, 0, 2)
    best = {name: 0.5 * value for name, value in model.state_dict().items() if whole or name == "2.weight"}
    model.load_state_dict(best, strict=whole)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in best:
                p.mul_(0.5)
    assert same(train(opt, model, 2, 4), train(twin, other, 2, 4))


def layers_replaced(model: nn.Module) -> None:
    model.add_module("0", nn.Linear(4, 6).double())
    model.add_module("2", nn.Linear(6, 3).double())


def parameters_replaced(model: nn.Module) -> None:
    for index in (0, 2):
        for name, p in list(layer(model, index).named_parameters()):
            setattr(layer(model, index), name, nn.Parameter(p.detach().clone()))


REPLACING: dict[str, Callable[[nn.Module], object]] = {
    "assigned": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
    "layers replaced": layers_replaced,
    "parameters replaced": parameters_replaced,
}


@pytest.mark.parametrize("make", [WRAPPERS[name] for name in LEARNING], ids=LEARNING)
@pytest.mark.parametrize("replace", REPLACING.values(), ids=REPLACING)
@pytest.mark.parametrize("act", ["step", "refit", "closure"])
def test_parameters_that_were_all_replaced_are_missed(
    make: Callable[[nn.Module], Any], replace: Callable[[nn.Module], object], act: str
) -> None:
    """A loop would otherwise go on and move nothing."""
    model = network()
    opt = make(model)
    train(opt, model, 0, 2)
    opt.zero_grad()
    replace(model)
    before = weights(model)
    x, y = batch(3)
    with pytest.raises(
        RuntimeError, match=r"none of the optimizer's parameters belongs to the model any more.*anew"
    ):
        if act == "closure":
            opt.step(lambda: backward(loss_fn(model(x), y)))
        else:
            backward(loss_fn(model(x), y))
            opt.step() if act == "step" else opt.refit(x, y)
    assert same(weights(model), before)
    model.zero_grad()
    again = make(model)
    train(again, model, 3, 4)
    assert not same(weights(model), before)


@pytest.mark.parametrize("swap", [False, True])
def test_materialized_from_meta(swap: bool) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    opt = llqr(model, CONFIGS["closed form"])
    with swapping(swap):
        model.to_empty(device="cpu")
    model.load_state_dict(network().state_dict())
    if not swap:
        with pytest.raises(RuntimeError, match=r"belongs to the model any more.*to_empty\(\)"):
            opt.refit(*batch(0))
        return
    plain = network()
    assert same(train(opt, model, 0, 3), train(llqr(plain, CONFIGS["closed form"]), plain, 0, 3))


# Compiled.


def module_compiled(model: nn.Module) -> Callable[..., Tensor]:
    model.compile(backend="eager")
    return model


def layer_compiled(model: nn.Module) -> Callable[..., Tensor]:
    layer(model, 0).compile(backend="eager")
    return model


def forward_compiled(model: nn.Module) -> Callable[..., Tensor]:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


COMPILED: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "wrapped": lambda model: torch.compile(model, backend="eager"),
    "in place": module_compiled,
    "one layer": layer_compiled,
    "forward": forward_compiled,
}


@wrappers
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)
def test_compiled_after_the_wrap(
    make: Callable[[nn.Module], Any], compiled: Callable[[nn.Module], Callable[..., Tensor]]
) -> None:
    torch.compiler.reset()
    model, plain = network(), network()
    opt, other = make(model), make(plain)
    train(opt, model, 0, 1)
    train(other, plain, 0, 1)
    call = compiled(model)

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(loss_fn(call(x), y))

    for t in (1, 2):
        x, y = batch(t)
        if isinstance(opt, LLQR) or isinstance(opt.base, LLQR):
            opt.refit(*batch(200 + t))
            other.refit(*batch(200 + t))
        opt.step(closure)
        train(other, plain, t, t + 1)
    for a, b in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# Copied.


@configs
@pytest.mark.parametrize("how", ["deep copy", "pickle"])
def test_copies_after_an_operation_go_on(config: LLQRConfig, how: str) -> None:
    model = network()
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    head_of_another_shape(model, opt)
    opt.refit(*batch(100))
    train(opt, model, 2, 3)
    if how == "deep copy":
        other, twin = copy.deepcopy((model, opt))
    else:
        file = io.BytesIO()
        opt.probe = None
        torch.save((model, opt), file)
        file.seek(0)
        other, twin = torch.load(file, weights_only=False)
    assert same(train(twin, other, 3, 5), train(opt, model, 3, 5))


@configs
def test_a_run_resumes_after_an_operation(config: LLQRConfig) -> None:
    model = network()
    layer(model, 0).requires_grad_(False)
    opt = llqr(model, config)
    train(opt, model, 0, 2)
    layer(model, 0).requires_grad_(True)
    state = copy.deepcopy((model.state_dict(), opt.state_dict()))
    other = network()
    twin = llqr(other, config)
    other.load_state_dict(state[0])
    twin.load_state_dict(state[1])
    assert opt.refit_due
    assert twin.refit_due
    assert same(train(twin, other, 2, 5), train(opt, model, 2, 5))


# Pure half precision.


@pytest.mark.filterwarnings("ignore:SAM over bfloat16")
@pytest.mark.parametrize("base", [SGD, AdamW])
@pytest.mark.parametrize(
    "config",
    [
        LLQRConfig(every=2, probes=4, probe_vector="gradient"),
        LLQRConfig(every=2, probes=4, probe_vector="gradient", structure="diagonal"),
        LLQRConfig.published(every=2, divergence="gauss-newton", steps=3),
    ],
    ids=["closed form", "diagonal", "inner loop"],
)
@pytest.mark.parametrize("perturb", [False, True])
def test_pure_bfloat16_is_close_to_float32(base: Any, config: LLQRConfig, perturb: bool) -> None:
    runs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = network(dtype)
        rate = 0.02 if config.acts_on == "update" else 0.2
        probe = partial(batch, 100, dtype)
        inner = LLQR(base(model.parameters(), lr=rate), model, loss_fn, config, probe=probe)
        opt: Any = SAM(inner) if perturb else inner
        start = weights(model)
        found = train(opt, model, 0, 5)
        assert all(p.isfinite().all() for p in found)
        kept = [v for e in inner.own.values() for v in e.values() if isinstance(v, Tensor)]
        assert all(v.isfinite().all() and v.dtype is torch.float32 for v in kept)
        assert all(u is not None and u.isfinite().all() for u in inner.preconditioned_gradients())
        size = max(float(w.abs().max()) for w in (*start, *found))
        runs.append(torch.cat([(a - b).flatten().float() for a, b in zip(found, start, strict=True)]))
    wide, narrow = runs
    # Each of 5 steps rounds a weight by at most 2^-9 of itself; twice that, for its gradient has bfloat16's digits too.
    assert float((wide - narrow).abs().max()) < 2 * 5 * 2.0**-9 * size
    assert float(torch.cosine_similarity(wide, narrow, 0)) > 0.999
