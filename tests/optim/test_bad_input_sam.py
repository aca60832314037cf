"""What bad input gets from SAM: an error that names argument, value and remedy; no weight is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adadelta

import llqr_sam_ref
from llqr_sam_ref import SAM
from llqr_sam_ref.optim import Adaptive, Fisher, Monge
from tests.optim._training import backward

NAN = float("nan")


@pytest.fixture
def w() -> nn.Parameter:
    return nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))


def sgd(w: nn.Parameter, **options: Any) -> SGD:
    return SGD([{"params": [w], **options}], lr=0.1)


CONSTRUCTION: dict[str, tuple[Callable[[nn.Parameter], object], str]] = {
    "rho negative": (lambda w: SAM(sgd(w), rho=-0.1), r"rho=-0\.1 .* \[0, inf\)"),
    "rho nan": (lambda w: SAM(sgd(w), rho=NAN), "rho=nan .* finite"),
    "rho inf": (lambda w: SAM(sgd(w), rho=float("inf")), "rho=inf .* finite"),
    "rho text": (lambda w: SAM(sgd(w), rho="big"), "rho='big' is not a number"),  # type: ignore[arg-type]
    "rho of a group": (lambda w: SAM(sgd(w, rho=-1.0)), r"rho=-1\.0"),
    "rho tensor": (lambda w: SAM(sgd(w, rho=torch.ones(2))), "rho has 2 elements; pass a number"),
    "rho tensor nan": (lambda w: SAM(sgd(w, rho=torch.tensor(NAN))), r"rho=tensor\(nan\) .* finite"),
    "lr nan": (lambda w: SAM(SGD([w], lr=NAN)), "lr=nan .* finite"),
    "lr of a group": (lambda w: SAM(sgd(w, lr=NAN)), "lr=nan"),
    "lr tensor": (lambda w: SAM(sgd(w, lr=torch.ones(2))), "lr has 2 elements; pass a number"),
    "weight_decay nan": (lambda w: SAM(sgd(w, weight_decay=NAN)), "weight_decay=nan"),
    "every": (lambda w: SAM(sgd(w), every=0), "every=0 .* at least 1"),
    "every float": (lambda w: SAM(sgd(w), every=2.0), r"every=2\.0 .* integer"),  # type: ignore[arg-type]
    "start": (lambda w: SAM(sgd(w), start=-1), "start=-1 .* at least 0"),
    "norm": (lambda w: SAM(sgd(w), norm="euclidian"), "norm='euclidian' .* did you mean 'euclidean'"),
    "nonfinite": (lambda w: SAM(sgd(w), nonfinite="skipp"), "nonfinite='skipp' .* did you mean 'skip'"),
    "ascent_ema one": (lambda w: SAM(sgd(w), ascent_ema=1.0), r"ascent_ema=1\.0 .* \[0, 1\)"),
    "ascent_ema nan": (lambda w: SAM(sgd(w), ascent_ema=NAN), "ascent_ema=nan"),
    "metric name": (
        lambda w: SAM(sgd(w), metric="monje"),  # type: ignore[arg-type]
        r"metric='monje' .*pass an object.*did you mean 'Monge'",
    ),
    "metric class": (lambda w: SAM(sgd(w), metric=Monge), "metric=<class .*pass an object"),  # type: ignore[arg-type]
    "base class": (lambda w: SAM(SGD, rho=0.1), "base is <class .*pass an instance"),  # type: ignore[arg-type]
    "parameters for base": (lambda w: SAM([w], rho=0.1), r"base is \[Parameter.*pass an instance"),  # type: ignore[arg-type]
    "base needs a closure": (lambda w: SAM(LBFGS([w])), "base=LBFGS .*closure.*first-order"),
    "base uses the name rho": (lambda w: SAM(Adadelta([w])), "base=Adadelta .*'rho'.*another base"),
    "SAM of SAM": (lambda w: SAM(SAM(sgd(w))), "base is a SAM already"),
    "differentiable": (lambda w: SAM(SGD([w], lr=0.1, differentiable=True)), "differentiable=True.*False"),
    "alpha": (lambda w: Monge(alpha=-1.0), r"alpha=-1\.0"),
    "alpha nan": (lambda w: Monge(alpha=NAN), "alpha=nan"),
    "eta of Adaptive": (lambda w: Adaptive(eta=-0.01), r"eta=-0\.01"),
    "eta of Fisher": (lambda w: Fisher(eta=0.0), r"eta=0\.0 .* \(0, inf\)"),
}


@pytest.mark.parametrize(("make", "message"), CONSTRUCTION.values(), ids=CONSTRUCTION)
def test_construction(make: Callable[[nn.Parameter], object], message: str, w: nn.Parameter) -> None:
    before = w.detach().clone()
    with pytest.raises(ValueError, match=message):
        make(w)
    assert torch.equal(w.detach(), before)


def test_a_refused_base_is_as_it_was(w: nn.Parameter) -> None:
    params: list[dict[str, Any]] = [{"params": [w]}, {"params": [nn.Parameter(torch.ones(1))], "rho": NAN}]
    base = SGD(params, lr=0.1)
    groups, defaults = [dict(group) for group in base.param_groups], dict(base.defaults)
    with pytest.raises(ValueError, match="rho=nan"):
        SAM(base)
    assert [list(group) for group in base.param_groups] == [list(group) for group in groups]
    assert base.defaults == defaults


def test_a_group_with_a_bad_radius_is_not_added(w: nn.Parameter) -> None:
    opt = SAM(sgd(w))
    with pytest.raises(ValueError, match=r"rho=-2\.0"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -2.0})
    assert len(opt.param_groups) == 1


def attempt(opt: SAM, scaler: torch.amp.GradScaler | None = None) -> None:
    with opt.perturbed(scaler):
        pass


def scheduled_to_nan(w: nn.Parameter) -> None:
    opt = SAM(sgd(w))
    backward(w.square().sum())
    opt.param_groups[0]["rho"] = NAN
    attempt(opt)


def rate_scheduled_to_nan(w: nn.Parameter) -> None:
    opt = SAM(sgd(w), start=5)
    backward(w.square().sum())
    opt.param_groups[0]["lr"] = NAN
    opt.step()


def nested(w: nn.Parameter) -> None:
    opt = SAM(sgd(w))
    backward(w.square().sum())
    with opt.perturbed():
        attempt(opt)


def step_inside(w: nn.Parameter) -> None:
    opt = SAM(sgd(w))
    backward(w.square().sum())
    with opt.perturbed():
        opt.step()


def closure_under_a_scaler(w: nn.Parameter) -> None:
    opt, scaler = SAM(sgd(w)), torch.amp.GradScaler("cpu")

    def closure() -> Tensor:
        opt.zero_grad()
        return backward(scaler.scale(w.square().sum()))

    closure()
    scaler.step(opt, closure)


def unscaled_too_early(w: nn.Parameter) -> None:
    opt, scaler = SAM(sgd(w)), torch.amp.GradScaler("cpu")
    backward(scaler.scale(w.square().sum()))
    scaler.unscale_(opt)
    attempt(opt, scaler)


def sparse_gradient(w: nn.Parameter) -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    opt = SAM(SGD([w, *embedding.parameters()], lr=0.1))
    backward(w.sum() + embedding(torch.tensor([1])).sum())
    attempt(opt)


def flattened_by_fsdp1(w: nn.Parameter) -> None:
    opt = SAM(sgd(w))
    backward(w.square().sum())
    w._fsdp_flattened = True  # type: ignore[attr-defined]  # how torch marks the pieces
    attempt(opt)


def nan_gradient(w: nn.Parameter) -> None:
    opt = SAM(sgd(w), nonfinite="raise")
    w.grad = torch.full_like(w, NAN)
    attempt(opt)


USE: dict[str, tuple[Callable[[nn.Parameter], None], type[Exception], str]] = {
    "scheduled rho": (scheduled_to_nan, ValueError, "rho=nan"),
    "scheduled lr": (rate_scheduled_to_nan, ValueError, "lr=nan .* finite"),
    "nested": (nested, RuntimeError, r"perturbed\(\) inside perturbed\(\).*leave it first"),
    "step inside": (step_inside, RuntimeError, r"step\(\) inside perturbed\(\).*leave the block"),
    "closure under a scaler": (
        closure_under_a_scaler,
        RuntimeError,
        r"step\(closure\) under a GradScaler.*perturbed\(scaler\)",
    ),
    "unscale_ before perturbed": (
        unscaled_too_early,
        RuntimeError,
        r"unscale_\(opt\) was called before.*after the block",
    ),
    "sparse": (sparse_gradient, RuntimeError, "parameter 1 of group 0 .*sparse_coo.*sparse=False"),
    "fsdp1": (flattened_by_fsdp1, RuntimeError, "parameter 0 of group 0 .*fully_shard"),
    "nan": (nan_gradient, RuntimeError, "NaN or Inf in the gradient of parameter number 0.*nonfinite"),
}


@pytest.mark.parametrize(("use", "error", "message"), USE.values(), ids=USE)
def test_use(
    use: Callable[[nn.Parameter], None], error: type[Exception], message: str, w: nn.Parameter
) -> None:
    before = w.detach().clone()
    with pytest.raises(error, match=message):
        use(w)
    assert torch.equal(w.detach(), before)


def trained(w: nn.Parameter, **options: Any) -> SAM:
    opt = SAM(SGD([w], lr=0.1, momentum=0.9), **options)
    backward(w.square().sum())
    attempt(opt)
    opt.step()
    return opt


def broken(saved: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "truncated":
        return {"state": saved["state"]}
    if how == "shape":
        saved["state"][0]["sam_ema"] = torch.zeros(5)
    if how == "newer":
        saved["state"][0]["sam_novel"] = torch.zeros(3)
    if how == "rho":
        saved["param_groups"][0]["rho"] = -1.0
    if how == "another model":
        saved["param_groups"][0]["params"] = [0, 1]
    return saved


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"state_dict has no \['param_groups'\]"),
        ("shape", r"sam_ema of shape \(5,\) for a parameter of shape \(3,\)"),
        ("newer", r"\['sam_ema', 'sam_novel'\].*saved with"),
        ("rho", r"rho=-1\.0"),
        ("another model", "doesn't match the size"),
    ],
)
def test_a_bad_checkpoint_loads_nothing(how: str, message: str, w: nn.Parameter) -> None:
    saved = broken(trained(w, ascent_ema=0.9).state_dict(), how)
    opt = trained(w, ascent_ema=0.9, rho=0.2)
    momentum, ema = opt.base.state[w]["momentum_buffer"].clone(), opt.own[w]["ema"].clone()
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    assert torch.equal(opt.base.state[w]["momentum_buffer"], momentum)
    assert torch.equal(opt.own[w]["ema"], ema)
    assert opt.param_groups[0]["rho"] == 0.2


def test_a_checkpoint_with_an_average_needs_one(w: nn.Parameter) -> None:
    saved = trained(w, ascent_ema=0.9).state_dict()
    with pytest.raises(ValueError, match=r"sam_ema.*ascent_ema=None.*saved with"):
        trained(w).load_state_dict(saved)


def test_the_package_comes_without_torch_until_a_torch_name_is_used() -> None:
    code = "import sys, llqr_sam_ref, llqr_sam_ref.exact; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in llqr_sam_ref.__all__:
        assert getattr(llqr_sam_ref, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Sam'"):
        _ = llqr_sam_ref.Sam
