"""SGD's momentum lies in the bases of U; that of a base nobody knows stays outside; both take the same steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from tests.optim._training import backward

STEPS = 24
DEFAULT = LLQRConfig().replace(basis_every=3)


class Outside(SGD):
    """SGD by another name, which nobody knows to be linear."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3)
    return nn.Sequential(conv, nn.Flatten(), nn.Tanh(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 6)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, x.flatten(1)[:, :6].argmax(1)


Between = Callable[[LLQR, Any, int], None]


def nothing(opt: LLQR, model: Any, t: int) -> None:
    """Train on."""


def forgetting(opt: LLQR, model: Any, t: int) -> None:
    if t == 10:
        opt.forget()


def on_gradients(opt: LLQR, model: Any, t: int) -> None:
    if t in {8, 16}:
        opt.config = opt.config.replace(acts_on="gradient" if t == 8 else "update")


def freezing(opt: LLQR, model: Any, t: int) -> None:
    if t in {6, 14}:
        model[3].weight.requires_grad_(t == 14)
        model[3].weight.grad = None


def diagonal_from_now(opt: LLQR, model: Any, t: int) -> None:
    if t == 9:
        opt.param_groups[1]["structure"] = "diagonal"


def identity_from_now(opt: LLQR, model: Any, t: int) -> None:
    if t == 9:
        opt.param_groups[1]["structure"] = "identity"


def loading(opt: LLQR, model: Any, t: int) -> None:
    if t == 11:
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def standing(opt: LLQR, model: Any, t: int) -> None:
    for group in opt.param_groups:  # while nothing is learned, nothing that was seen may be taken for new
        group["lr"] = 0.0 if t % 4 == 3 else 0.02


CASES: dict[str, tuple[LLQRConfig, Between, dict[str, Any]]] = {
    "default": (DEFAULT, nothing, {}),
    "blocks": (DEFAULT.replace(max_side=3), nothing, {}),
    "identity sides": (DEFAULT.replace(max_side=6, wide="identity"), nothing, {}),
    "every other step": (DEFAULT.replace(every=2), nothing, {}),
    "grafted": (DEFAULT.replace(step_rule="graft"), nothing, {}),
    "separable": (DEFAULT.replace(structure="separable-ekfac"), nothing, {}),
    "plain momentum": (DEFAULT, nothing, {"nesterov": False, "dampening": 0.1, "maximize": True}),
    "no momentum": (DEFAULT, nothing, {"nesterov": False, "momentum": 0.0}),
    "foreach": (DEFAULT, nothing, {"foreach": True}),
    "forgetting": (DEFAULT, forgetting, {}),
    "on gradients for a while": (DEFAULT, on_gradients, {}),
    "frozen for a while": (DEFAULT, freezing, {}),
    "diagonal from now on": (DEFAULT, diagonal_from_now, {}),
    "identity from now on": (DEFAULT, identity_from_now, {}),
    "loading": (DEFAULT, loading, {}),
    "standing still at times": (DEFAULT, standing, {}),
}


def built(kind: type[SGD], config: LLQRConfig, **settings: Any) -> tuple[Any, LLQR]:
    model: Any = network()
    groups = [{"params": [*model[0].parameters(), *model[5].parameters()]}, {"params": model[3].parameters()}]
    base = kind(groups, **{"lr": 0.02, "momentum": 0.9, "nesterov": True, **settings})
    return model, LLQR(base, model, config=config)


def walk(
    model: Any,
    opt: LLQR,
    steps: range,
    between: Between = nothing,
    rho: float = 0.0,
    scale: float = 1.0,
) -> list[Tensor]:
    outer: Any = SAM(opt, rho) if rho else opt
    path = []
    for t in steps:
        between(opt, model, t)
        x, y = batch(t)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            outer.zero_grad()
            return backward(scale * cross_entropy(model(x), y))

        outer.step(closure)
        path.append(torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()]))
    return path


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("name", CASES)
def test_it_takes_the_same_steps(name: str, rho: float) -> None:
    config, between, settings = CASES[name]
    inside, outside = (built(kind, config, **settings) for kind in (SGD, Outside))
    found, wanted = (walk(*pair, range(STEPS), between, rho) for pair in (inside, outside))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert float((wanted[-1] - wanted[0]).abs().max()) > 1e-2


def momentum(opt: LLQR, p: Tensor) -> Tensor:
    found: Tensor = opt.base.state[p]["momentum_buffer"]
    return found


def test_momentum_lies_in_the_bases_until_it_is_not_wanted_there() -> None:
    (model, opt), (twin, plain) = built(SGD, DEFAULT), built(Outside, DEFAULT)
    walk(model, opt, range(7))
    walk(twin, plain, range(7))
    for place in (3, 5):
        w, v = model[place].weight, twin[place].weight
        E, F = (opt.own[w][name] for name in ("E_Psi", "E_Phi"))
        assert opt.own[w]["riding"] == 1
        assert plain.own[v]["riding"] == 0
        torch.testing.assert_close(E @ momentum(opt, w) @ F.mT, momentum(plain, v), rtol=1e-9, atol=1e-12)
        assert float((momentum(opt, w) - momentum(plain, v)).abs().max()) > 1e-3
    assert opt.own[model[3].bias]["riding"] == 0
    opt.forget()
    for place in (3, 5):
        wanted = momentum(plain, twin[place].weight)
        torch.testing.assert_close(momentum(opt, model[place].weight), wanted, rtol=1e-9, atol=1e-12)


def test_a_checkpoint_says_where_its_momentum_lies() -> None:
    model, opt = built(SGD, DEFAULT)
    walk(model, opt, range(8))
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    on = walk(model, opt, range(8, 16))
    twin, again = built(SGD, DEFAULT)
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert all(torch.equal(a, b) for a, b in zip(on, walk(twin, again, range(8, 16)), strict=True))


def test_a_checkpoint_of_before_has_its_momentum_outside() -> None:
    model, opt = built(Outside, DEFAULT)
    walk(model, opt, range(8))
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    for entries in saved[1]["state"].values():
        entries.pop("llqr_riding", None)
    on = walk(model, opt, range(8, 16))
    twin, again = built(SGD, DEFAULT)
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for one, other in zip(on, walk(twin, again, range(8, 16)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert again.own[twin[3].weight]["riding"] == 1


def test_half_precision_keeps_its_momentum_outside() -> None:
    model, opt = built(SGD, DEFAULT)
    model.bfloat16()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert [opt.own[p]["riding"] for p in opt.own] == [0] * len(opt.own)


def test_a_gradient_that_is_not_a_number_is_seen_in_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where masks are always used, as on an accelerator, a broken gradient must not become one of zeros."""
    module = "llqr_sam_ref.optim.preconditioner.closed_form.answers_at_once"
    monkeypatch.setattr(module, lambda device: False)
    model, opt = built(SGD, DEFAULT)
    walk(model, opt, range(4))
    before = {p: opt.own[p]["c"].clone() for p in opt.own}
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    assert model[3].weight.grad is not None
    model[3].weight.grad[0, 0] = torch.nan
    opt.step()
    assert not model[3].weight.isfinite().all()
    assert model[5].weight.isfinite().all()
    assert torch.equal(opt.own[model[3].weight]["c"], before[model[3].weight])


def test_an_error_leaves_nothing_that_a_later_step_takes_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (model, opt), (twin, other) = built(SGD, DEFAULT), built(SGD, DEFAULT)
    walk(model, opt, range(4))
    walk(twin, other, range(4))
    for net, o in ((model, opt), (twin, other)):
        o.zero_grad()
        backward(cross_entropy(net(batch(4)[0]), batch(4)[1]))
        if o is opt:
            with monkeypatch.context() as patch, pytest.raises(OSError, match="went away"):
                patch.setattr(opt.base, "step", _goes_away)
                opt.step()
        else:
            o._learn_from_step()
        for group in o.param_groups:
            group["lr"] = 0.0
        o.zero_grad()
        backward(cross_entropy(net(batch(5)[0]), batch(5)[1]))
        o.step()
        for group in o.param_groups:
            group["lr"] = 0.02
    found, wanted = walk(model, opt, range(6, 9)), walk(twin, other, range(6, 9))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def _goes_away() -> None:
    raise OSError("the device went away")
