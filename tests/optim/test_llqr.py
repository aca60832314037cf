"""LLQR by itself, promise after promise (hence the length): when it refits, how it steps, what it saves, reports."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from llqr_sam_ref import LLQR, SAM, LLQRConfig, Preconditioned
from llqr_sam_ref.optim._model import unwrapped
from llqr_sam_ref.optim.likelihood import Categorical
from llqr_sam_ref.optim.preconditioner.stack import COUNTS
from tests.optim._training import backward, same, weights

loss_fn = nn.CrossEntropyLoss()
DEFAULT = LLQRConfig(every=3, probes=4)
PUBLISHED = LLQRConfig.published(every=3, lr=0.02, ema=0.5, steps=10)
BOTH = pytest.mark.parametrize("config", [DEFAULT, PUBLISHED], ids=["default", "published"])
STRUCTURES = ("scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac", "dense")


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :3] + 0.3 * x[:, 1:]).argmax(1)


def fresh(config: LLQRConfig = DEFAULT, model: nn.Module | None = None, **options: Any) -> LLQR:
    model = network() if model is None else model
    rate = 0.02 if config.acts_on == "update" else 0.2
    return LLQR(SGD(model.parameters(), lr=rate, momentum=0.9), model, loss_fn, config, **options)


def sam(opt: LLQR, rho: float = 0.05) -> Any:
    return SAM(opt, rho, model=opt.model)


def layer(model: nn.Module, index: int) -> Any:
    """A linear layer of ``network()``."""
    return list(model.children())[index]


def gradients(opt: Any, t: int, scale: float = 1.0) -> Tensor:
    opt.zero_grad()
    x, y = batch(t, next(opt.model.parameters()).dtype)
    return backward(scale * loss_fn(opt.model(x), y))


def train(opt: Any, steps: int, start: int = 0, scale: float = 1.0) -> list[Tensor]:
    """The loop that a user writes, with probe batch 100, 101, ... for refit 0, 1, ..."""
    for t in range(start, start + steps):
        if opt.refit_due and opt.probe is None:
            opt.refit(*batch(100 + int(opt.param_groups[0]["llqr_refits"])))
        gradients(opt, t, scale)
        if isinstance(opt, SAM):
            with opt.perturbed():
                gradients(opt, t, scale)
        opt.step()
    return weights(opt.model)


# When it refits.


@BOTH
@pytest.mark.parametrize("perturb", [False, True])
@pytest.mark.parametrize("closure", [False, True])
def test_automatic_refits_equal_manual_ones_bit_for_bit(
    config: LLQRConfig, perturb: bool, closure: bool
) -> None:
    calls: list[int] = []

    def probe() -> tuple[Tensor, Tensor]:
        calls.append(1)
        return batch(100 + len(calls) - 1)

    wrap: Callable[[LLQR], Any] = sam if perturb else lambda opt: opt
    manual, automatic = wrap(fresh(config)), wrap(fresh(config, probe=probe))
    expected = train(manual, 8)
    if closure:
        for t in range(8):
            automatic.step(lambda t=t: gradients(automatic, t))
    else:
        train(automatic, 8)
    assert same(weights(automatic.model), expected)
    assert len(calls) == 3


def test_an_overdue_refit_waits_and_nobody_else_does_it() -> None:
    opt = fresh()
    for t in range(5):
        assert opt.refit_due
        gradients(opt, t)
        opt.step()
    assert int(opt.param_groups[0]["llqr_refits"]) == 0
    opt.refit(*batch(100))
    assert not opt.refit_due


def test_until_the_first_refit_it_is_the_base_with_the_step_rule() -> None:
    opt, model = fresh(DEFAULT.replace(step_rule="none")), network()
    base = SGD(model.parameters(), lr=0.02, momentum=0.9)
    for t in range(4):
        gradients(opt, t)
        opt.step()
        base.zero_grad()
        x, y = batch(t)
        backward(loss_fn(model(x), y))
        base.step()
    for a, b in zip(weights(opt.model), weights(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@BOTH
def test_idle_steps_refit_and_count_nothing(config: LLQRConfig) -> None:
    calls: list[int] = []
    opt = fresh(config, probe=lambda: calls.append(1) or batch(100))  # type: ignore[func-returns-value]
    opt.param_groups[0]["lr"] = 0.0
    before = weights(opt.model)
    for t in range(3):
        gradients(opt, t)
        opt.step()
        with SAM(opt, rho=0.0).perturbed():
            pass
    assert same(weights(opt.model), before)
    assert (calls, opt.refit_due, opt.param_groups[0]["llqr_steps"]) == ([], False, 0)
    opt.param_groups[0]["lr"] = 0.02
    assert opt.refit_due


class Drawing(nn.Module):
    """Draws random numbers also in evaluation mode, without making anything of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * torch.rand_like(x)


@BOTH
def test_a_refit_touches_nothing_but_U(config: LLQRConfig) -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), Drawing(), nn.Linear(6, 3)
    )  # in float32, which autocast would round
    opt = fresh(config, model)
    x, y = batch(0, torch.float32)
    gradients(opt, 0)
    layer(model, 3).eval()  # flags are restored one by one
    flags = [module.training for module in model.modules()]
    kept = [p.grad for p in model.parameters()]
    values = [g.clone() for g in kept if g is not None]
    buffers, before, stream = (
        copy.deepcopy(dict(model.named_buffers())),
        weights(model),
        torch.get_rng_state(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        opt.refit(x, y)
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    assert same([g for g in kept if g is not None], values)
    assert all(torch.equal(dict(model.named_buffers())[name], b) for name, b in buffers.items())
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), stream)
    twin = fresh(config, copy.deepcopy(model))
    twin.refit(x, y)  # without autocast
    for p, q in zip(opt.own, twin.own, strict=True):
        for name, value in opt.own[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(twin.own[q][name]))


def test_refits_trace_the_model_once() -> None:
    """New weights and new data of the same shape do not pay the tracing again; thawed layers do."""
    opt = fresh(PUBLISHED)
    counts = []
    for t in range(4):
        opt.refit(*batch(100 + t))
        here = opt.progress.cache["linearization"]
        counts.append((id(here), here.traces))
        train(opt, 1, t)
        if t == 2:
            layer(opt.model, 0).requires_grad_(False)
    assert len(set(counts[:3])) == 1
    assert counts[0][1] == 1
    assert counts[3][0] != counts[0][0]


def test_labels_are_sampled_anew_at_every_refit_and_the_same_in_every_run() -> None:
    opt, twin = fresh(), fresh()
    other = fresh(DEFAULT.replace(seed=1))
    found = []
    for _ in range(2):
        for each in (opt, twin, other):
            each.refit(batch(100)[0])  # no labels needed
        found.append(opt.own[opt.param_groups[0]["params"][1]]["c"].clone())
    for p, q, r in zip(*(each.param_groups[0]["params"] for each in (opt, twin, other)), strict=True):
        assert torch.equal(opt.own[p]["c"], twin.own[q]["c"])
        assert not torch.equal(opt.own[p]["c"], other.own[r]["c"])
    assert not torch.equal(found[0], found[1])


# How it steps.


@BOTH
def test_scaling_the_loss_or_U_changes_no_step_of_the_default(config: LLQRConfig) -> None:
    opt = sam(fresh(config), 0.1)
    expected = train(opt, 6)
    for scale in (1e3, 1e-3):
        model = network()
        scaled = LLQR(
            SGD(model.parameters(), lr=opt.param_groups[0]["lr"], momentum=0.9),
            model,
            lambda z, y, scale=scale: scale * loss_fn(z, y),
            config,
            likelihood=Categorical(),
        )
        found = train(sam(scaled, 0.1), 6, scale=scale)
        gap = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        assert (gap < 1e-10) == (config is DEFAULT)


def test_scaling_U_changes_no_step_of_the_default() -> None:
    found = []
    for factor in (1.0, 7.0):
        opt = sam(fresh(), 0.1)
        for t in range(6):
            if opt.refit_due:
                opt.refit(*batch(100 + t))
                for stack in opt.base._preconditioner().stacks:
                    for name in stack.structure.scales:
                        stack.kept[name].mul_(factor)
            gradients(opt, t)
            with opt.perturbed():
                gradients(opt, t)
            opt.step()
        found.append(weights(opt.model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_learning_rate_is_the_rms_change_of_a_weight(structure: str) -> None:
    opt = fresh(DEFAULT.replace(structure=structure))
    for t in range(4):
        before = torch.cat([w.reshape(-1) for w in weights(opt.model)])
        after = torch.cat([w.reshape(-1) for w in train(opt, 1, t)])
        assert float((after - before).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-12)


def test_decay_is_decoupled_from_U_and_from_the_rule() -> None:
    model = network()
    opt = LLQR(SGD(model.parameters(), lr=0.1, weight_decay=0.5), model, loss_fn, DEFAULT)
    opt.refit(*batch(100))
    opt.zero_grad()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # |S| = 0: no direction, only decay
    before = weights(model)
    opt.step()
    for now, then in zip(weights(model), before, strict=True):
        torch.testing.assert_close(now, 0.95 * then, rtol=1e-14, atol=0)
    assert opt.param_groups[0]["weight_decay"] == 0.5
    assert opt.param_groups[0]["lr"] == 0.1


@BOTH
def test_a_learning_rate_may_be_a_tensor(config: LLQRConfig) -> None:
    plain, other = fresh(config), fresh(config)
    other.param_groups[0]["lr"] = torch.tensor(plain.param_groups[0]["lr"], dtype=torch.float64)
    for a, b in zip(train(other, 5), train(plain, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@BOTH
@pytest.mark.parametrize("base", [SGD, AdamW])
def test_maximize_goes_up(config: LLQRConfig, base: Any) -> None:
    found = []
    for sign in (1.0, -1.0):
        model = network()
        llqr = LLQR(
            base(model.parameters(), lr=0.02, maximize=sign < 0, weight_decay=0.0), model, loss_fn, config
        )
        opt = sam(llqr)
        for t in range(4):
            if opt.refit_due:
                opt.refit(*batch(100 + t))
            gradients(opt, t, sign)
            with opt.perturbed():
                gradients(opt, t, sign)
            opt.step()
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@BOTH
def test_a_base_that_fails_leaves_weights_gradients_and_settings(config: LLQRConfig) -> None:
    opt = fresh(config)
    gradients(opt, 0)
    before, kept = weights(opt.model), [p.grad for p in opt.model.parameters()]
    values = [g.clone() for g in kept if g is not None]

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    late = config.acts_on == "update"  # after the base has moved the weights, which are aside
    handle = (opt.base.register_step_post_hook if late else opt.base.register_step_pre_hook)(fails)
    settings = {name: value for name, value in opt.param_groups[0].items() if name != "params"}
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    handle.remove()
    assert same(weights(opt.model), before)
    assert all(p.grad is g for p, g in zip(opt.model.parameters(), kept, strict=True))
    assert same([g for g in kept if g is not None], values)
    assert {name: value for name, value in opt.param_groups[0].items() if name != "params"} == settings


@BOTH
def test_gradients_are_the_same_tensors_after_a_step(config: LLQRConfig) -> None:
    opt = fresh(config)
    opt.refit(*batch(100))
    gradients(opt, 0)
    kept = [p.grad for p in opt.model.parameters()]
    values = [g.clone() for g in kept if g is not None]
    opt.step()
    assert all(p.grad is g for p, g in zip(opt.model.parameters(), kept, strict=True))
    assert same([g for g in kept if g is not None], values)


@BOTH
def test_preconditioned_gradients_are_what_SAM_perturbs_by(config: LLQRConfig) -> None:
    opt = sam(fresh(config), 0.3)
    opt.refit(*batch(100))
    gradients(opt, 0)
    layer(opt.model, 0).bias.grad = None
    Ug = opt.preconditioned_gradients()
    assert [t is None for t in Ug] == [False, True, False, False]
    assert isinstance(opt.base.geometry(), Preconditioned)
    before = weights(opt.model)
    length = torch.stack([t.norm() for t in Ug if t is not None]).norm()
    with opt.perturbed():
        for now, then, t in zip(weights(opt.model), before, Ug, strict=True):
            torch.testing.assert_close(now - then, torch.zeros_like(then) if t is None else 0.3 * t / length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_half_precision_weights_have_float32_factors(config: LLQRConfig, dtype: torch.dtype) -> None:
    opt = fresh(config, network(dtype))
    for t in range(4):
        if opt.refit_due:
            opt.refit(*batch(100, dtype))
        gradients(opt, t)
        opt.step()
    assert all(w.dtype is dtype and bool(w.isfinite().all()) for w in weights(opt.model))
    stored = [t for entries in opt.own.values() for t in entries.values() if isinstance(t, Tensor)]
    assert {t.dtype for t in stored} == {torch.float32}


# Groups and models.


def test_groups_have_structures_of_their_own() -> None:
    model = network()
    first, second = ({"params": list(layer(model, i).parameters())} for i in (0, 2))
    groups: list[dict[str, Any]] = [{**first, "structure": "diagonal"}, second]
    opt = LLQR(SGD(groups, lr=0.1), model, loss_fn, DEFAULT)
    opt.refit(*batch(100))
    assert sorted(k for k in opt.own[layer(model, 0).weight] if k not in COUNTS) == [
        "c",
        "d",
    ]
    assert {"E_Psi", "E_Phi", "D"} < opt.own[layer(model, 2).weight].keys()
    both = LLQR(SGD(model.parameters(), lr=0.1), model, loss_fn, DEFAULT)
    both.refit(*batch(100))
    gradients(opt, 0)
    assert torch.equal(opt.preconditioned_gradients()[2], both.preconditioned_gradients()[2])  # type: ignore[arg-type]


@BOTH
def test_preconditioned_gradients_come_in_the_order_of_the_groups(config: LLQRConfig) -> None:
    model = network()
    last, first = (list(layer(model, i).parameters()) for i in (2, 0))
    groups: list[dict[str, Any]] = [{"params": last[::-1]}, {"params": first}]
    opt, usual = LLQR(SGD(groups, lr=0.1), model, loss_fn, config), fresh(config)
    for each in (opt, usual):
        each.refit(*batch(100))
        gradients(each, 0)
    found, wanted = opt.preconditioned_gradients(), usual.preconditioned_gradients()
    assert [tuple(t.shape) for t in found if t is not None] == [(3,), (3, 6), (6, 4), (6,)]
    for a, b in zip(found, (wanted[i] for i in (3, 2, 0, 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert [row.name for row in opt.report()] == [row.name for row in usual.report()]


def test_parameters_of_no_model_keep_the_identity_and_a_root_mean_square_of_their_own() -> None:
    model, extra = network(), nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    frozen = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    groups: list[dict[str, Any]] = [
        {"params": model.parameters()},
        {"params": [extra, frozen], "structure": "identity"},
    ]
    opt = LLQR(SGD(groups, lr=0.1), model, loss_fn, DEFAULT)
    opt.refit(*batch(100))
    gradients(opt, 0)
    extra.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    before = weights(model)
    opt.step()
    step = torch.tensor([3.0, 4.0]).double() * 2**0.5 / 5
    torch.testing.assert_close(extra.detach(), torch.tensor([3.0, 4.0]).double() - 0.1 * step)
    assert frozen.item() == 1.0
    change = torch.cat([(a - b).reshape(-1) for a, b in zip(weights(model), before, strict=True)])
    assert float(change.square().mean().sqrt()) == pytest.approx(0.1)
    assert extra not in opt.own


@BOTH
def test_layers_frozen_and_thawed_during_training(config: LLQRConfig) -> None:
    model = network()
    layer(model, 0).requires_grad_(False)
    opt = fresh(config, model)
    before = weights(layer(model, 0))
    train(opt, 4)
    assert same(weights(layer(model, 0)), before)
    assert layer(model, 0).weight not in opt.own
    layer(model, 0).requires_grad_(True)
    train(opt, 4, 4)
    assert not same(weights(layer(model, 0)), before)
    head = opt.own[layer(model, 0).weight if config is DEFAULT else layer(model, 0).bias]
    assert head["refits"] == 2  # its own count, so that its first sample, at once, is taken whole
    layer(model, 0).requires_grad_(False)
    opt.zero_grad()
    state = {name: torch.as_tensor(value).clone() for name, value in head.items()}
    train(opt, 4, 8)
    now = opt.own[layer(model, 0).weight if config is DEFAULT else layer(model, 0).bias]
    assert all(torch.equal(torch.as_tensor(now[name]), value) for name, value in state.items())


def test_a_tied_weight_has_one_block() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.table(tokens).mean(1))

    torch.manual_seed(0)
    model = Tied().double()
    opt = LLQR(SGD(model.parameters(), lr=0.05), model, loss_fn, DEFAULT)
    tokens, y = torch.randint(0, 7, (16, 3)), torch.randint(0, 7, (16,))
    first = loss_fn(model(tokens), y).item()
    for _ in range(10):
        if opt.refit_due:
            opt.refit(tokens, y)
        opt.zero_grad()
        backward(loss_fn(model(tokens), y))
        opt.step()
    assert len(opt.own) == 1
    assert loss_fn(model(tokens), y).item() < first


@BOTH
def test_convolutions_norms_and_token_models(config: LLQRConfig) -> None:
    torch.manual_seed(0)
    image = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 9), Swap()).double()
    labels = torch.randint(0, 9, (8, 5))
    labels[:, 0] = -100
    cases: list[tuple[nn.Module, Tensor, Tensor]] = [
        (image, torch.randn(8, 2, 5, 5).double(), torch.randint(0, 3, (8,))),
        (tokens, torch.randint(0, 9, (8, 5)), labels),
    ]
    for model, x, y in cases:
        opt = fresh(config, model)
        first = loss_fn(model(x), y).item()
        for _ in range(9):
            if opt.refit_due:
                opt.refit(x, y)
            opt.zero_grad()
            backward(loss_fn(model(x), y))
            opt.step()
        assert loss_fn(model(x), y).item() < first
        assert all(row.distance > 0 for row in opt.report())


class Swap(nn.Module):
    """Classes to axis 1, where cross-entropy wants them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_wrapped_models_are_found() -> None:
    model = network()
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model, backend="eager")) is model  # type: ignore[arg-type]
    holder = nn.Sequential()
    holder.module = model
    assert unwrapped(holder) is holder


@pytest.mark.parametrize("structure", ["ekfac", "separable-ekfac", "kronecker"])
def test_wide_sides_may_be_cut_into_blocks(structure: str) -> None:
    """In blocks of 3 the sides of 6 get bases of their own; U is 1/(c + mu) there, c the averaged squares."""
    settings: dict[str, Any] = {"damping_kind": "absolute", "damping": 0.1, "max_side": 4, "wide": "blocks"}
    opt = fresh(DEFAULT.replace(structure=structure, **settings))
    opt.refit(*batch(100))
    for t in (101, 102):
        opt.refit(*batch(t))
    weight = layer(opt.model, 2).weight  # (3, 6)
    own = opt.own[weight]
    assert own["E_Phi"].shape == (2, 3, 3)
    E_Phi = torch.zeros(6, 6).double()
    E_Phi[:3, :3], E_Phi[3:, 3:] = own["E_Phi"]
    torch.testing.assert_close(E_Phi.T @ E_Phi, torch.eye(6).double())
    E = torch.kron(own["E_Psi"], E_Phi)
    D = 1 / (own["c"] + 0.1) if structure == "ekfac" else own["d_Psi"][:, None] * own["d_Phi"]
    gradients(opt, 0)
    wanted = E @ (D.reshape(-1) * (E.T @ weight.grad.reshape(-1)))
    torch.testing.assert_close(opt.preconditioned_gradients()[2].reshape(-1), wanted)  # type: ignore[union-attr]
    inner = fresh(PUBLISHED.replace(structure=structure, max_side=4, wide="blocks"))
    inner.refit(*batch(100))
    gradients(inner, 0)
    assert all(row.distance > 0 for row in inner.report())


def test_costs_on_states_enter_the_inner_loop() -> None:
    found = []
    for states in (None, {"0": 0.0}, {"0": 5.0}):
        opt = fresh(PUBLISHED, states=states)
        opt.refit(*batch(100))
        gradients(opt, 0)
        found.append([t for t in opt.preconditioned_gradients() if t is not None])
    for a, b in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert float((found[0][0] - found[2][0]).abs().max()) > 1e-5


# Schedules, copies, checkpoints.


def test_period_and_decay_may_be_scheduled() -> None:
    opt = fresh(DEFAULT.replace(every=2))
    due = []
    for t in range(9):
        if t == 4:
            opt.config = opt.config.replace(every=4, curvature_memory=2.0)
        if opt.refit_due:
            due.append(t)
            opt.refit(*batch(100 + t))
        gradients(opt, t)
        opt.step()
    assert due == [0, 2, 4, 8]
    opt = fresh(DEFAULT.replace(curvature_memory=1.0))
    opt.refit(*batch(100))
    opt.config = opt.config.replace(curvature_memory=3e4)
    before = opt.own[layer(opt.model, 0).bias]["c"].clone()
    opt.refit(*batch(101))
    after, gain = opt.own[layer(opt.model, 0).bias]["c"], (1 - 0.9999) / (1 - 0.9999**2)
    other = fresh(DEFAULT.replace(curvature_memory=1.0))
    for t in (100, 101):
        other.refit(*batch(t))
    torch.testing.assert_close(after, torch.lerp(before, other.own[layer(other.model, 0).bias]["c"], gain))


def test_the_average_of_the_inner_loop_may_be_scheduled() -> None:
    """With ema gamma the stored array moves (1 - gamma) of the way to where the loop ended."""
    found = []
    for ema in (0.0, 0.75, 1.0):
        opt = fresh(PUBLISHED.replace(ema=0.0))
        opt.refit(*batch(100))
        start = opt.own[layer(opt.model, 0).bias]["d"].clone()
        opt.config = opt.config.replace(ema=ema)
        opt.refit(*batch(101))
        found.append(opt.own[layer(opt.model, 0).bias]["d"] - start)
    torch.testing.assert_close(found[1], 0.25 * found[0], rtol=1e-12, atol=1e-14)
    assert float(found[0].abs().max()) > 1e-4
    assert not found[2].any()


def test_a_checkpoint_of_the_bare_base_starts_U_at_the_identity() -> None:
    opt = fresh()
    train(opt, 2)
    bare = SGD(network().parameters(), lr=0.3, momentum=0.9)
    opt.load_state_dict(bare.state_dict())
    gradients(opt, 0)
    for p, t in zip(opt.model.parameters(), opt.preconditioned_gradients(), strict=True):
        assert t is not None
        assert p.grad is not None
        assert torch.equal(t, p.grad)
    assert opt.param_groups[0]["lr"] == 0.3


def test_copies_leave_the_probe_behind_and_keep_the_rest() -> None:
    opt = fresh(probe=lambda: batch(100))
    train(opt, 4)
    twin = copy.deepcopy(opt)
    assert twin.probe is None
    assert opt.probe is not None
    assert twin.model is not opt.model
    assert all(p is q for p, q in zip(twin.model.parameters(), twin.param_groups[0]["params"], strict=True))
    twin.probe = lambda: batch(100)
    expected = train(opt, 4, 4)
    assert same(train(twin, 4, 4), expected)
    model = network()
    free = LLQR(
        SGD(model.parameters(), lr=0.1), model, lambda z, y: loss_fn(z, y), DEFAULT, likelihood=Categorical()
    )
    copy.deepcopy(free)  # only a pickle needs a loss with a name
    again = pickle.loads(pickle.dumps(fresh(PUBLISHED)))
    assert again.config == PUBLISHED


def test_saved_entries_are_views_of_what_the_step_uses() -> None:
    opt = fresh()
    train(opt, 1)
    for stack in opt._preconditioner().stacks:
        for row, head in enumerate(stack.heads):
            for name, stacked in stack.kept.items():
                assert opt.own[head][name].data_ptr() == stacked[row].data_ptr()


# What it reports.


@pytest.mark.parametrize("config", [DEFAULT, PUBLISHED], ids=["default", "published"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("max_side", "wide"), [(None, "identity"), (5, "identity"), (0, "identity"), (4, "blocks")]
)
def test_the_report_agrees_with_dense_matrices(
    config: LLQRConfig, structure: str, max_side: int | None, wide: str
) -> None:
    rate = {} if config.closed else {"lr": 0.05}
    opt = fresh(config.replace(structure=structure, max_side=max_side, wide=wide, **rate))
    for t in range(2):
        opt.refit(*batch(100 + t))
    gradients(opt, 0)
    report = {row.name: row for row in opt.report()}
    gradient = {name: p.grad for name, p in opt.model.named_parameters() if p.grad is not None}
    for stack in opt._preconditioner().stacks:
        dense = stack.structure.to_dense(stack.arrays)
        for U, block in zip(dense.expand(len(stack.heads), *dense.shape[-2:]), stack.blocks, strict=True):
            row, g = report.pop(block.name), torch.cat([gradient[name].reshape(-1) for name in block.names])
            assert row.distance == pytest.approx(float((U - torch.eye(len(U))).norm()), rel=1e-10, abs=1e-12)
            assert row.descent == pytest.approx(float(g @ U @ g), rel=1e-10)
            assert row.stretch == pytest.approx(float((U @ g).norm() / g.norm()), rel=1e-10)
            assert row.cosine == pytest.approx(row.descent / float(g.norm() * (U @ g).norm()), rel=1e-10)
            assert row.clip_hits.keys() == (set() if config is DEFAULT else stack.arrays.keys())
    assert not report


def test_the_report_counts_clips_and_survives_zero_gradients() -> None:
    opt = fresh(PUBLISHED.replace(clip=1e-6))
    opt.refit(*batch(100))
    assert [row.clip_hits for row in opt.report()] == [{"d": 10}, {"d": 10}]
    assert all((row.descent, row.stretch, row.cosine) == (0, 0, 0) for row in opt.report())


def test_the_held_out_gain_tells_a_good_U_from_a_bad_one() -> None:
    opt = fresh(PUBLISHED.replace(structure="dense", lr=0.05, steps=200, ema=0.0, reduction="mean"))
    x, y = batch(100)
    assert opt.quadratic_gain(x, y) == pytest.approx(1.0, rel=1e-12)
    opt.refit(x, y)
    gain = opt.quadratic_gain(x, y)
    assert gain > 1.05
    gradients(opt, 100)
    g = torch.cat([p.grad.reshape(-1) for p in opt.model.parameters() if p.grad is not None])
    s = torch.cat([t.reshape(-1) for t in opt.preconditioned_gradients() if t is not None])
    parameters = list(opt.model.parameters())
    logits = opt.model(x)
    rows = [torch.autograd.grad(z, parameters, retain_graph=True) for z in logits.reshape(-1)]
    J = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in rows]).reshape(16, 3, -1)
    pi = logits.detach().softmax(1)
    C = torch.einsum("nci,nc,ncj->ij", J, pi, J) - torch.einsum("nci,nc,nd,ndj->ij", J, pi, pi, J)
    wanted = (g @ s) ** 2 / (s @ C @ s) / ((g @ g) ** 2 / (g @ C @ g))
    assert gain == pytest.approx(float(wanted), rel=1e-9)
