"""What SAM promises beyond being a citizen, promise after promise (hence the length): equation, switches, guards."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from llqr_sam_ref.optim import SAM, Adaptive, Fisher, Metric, Monge, Preconditioned, frozen_batch_stats
from llqr_sam_ref.optim._wrapper import OptimizerWrapper
from tests.optim._training import backward, same, weights

H = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bowl(w: Tensor) -> Tensor:
    """L = 1/2 w^T diag(H) w, whose gradient is H w."""
    return 0.5 * (H * w * w).sum()


def point() -> nn.Parameter:
    return nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))


def mlp(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(8))
    if dropout:
        layers.insert(2, nn.Dropout(dropout))
    return nn.Sequential(*layers).double()


def data(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(size, 4, generator=generator, dtype=torch.float64),
        torch.randint(3, (size,), generator=generator),
    )


def slope(model: nn.Module, factor: float = 1.0) -> Tensor:
    """Add the gradient of factor times the loss to ``.grad``."""
    x, y = data()
    return backward(factor * nn.functional.cross_entropy(model(x), y))


def one_step(model: nn.Module, opt: Any, scaler: Any = None) -> None:
    """Both passes and the step."""
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    opt.zero_grad()
    slope(model, scale)
    with opt.perturbed(scaler):
        opt.zero_grad()
        slope(model, scale)
    if scaler is None:
        opt.step()
    else:
        scaler.step(opt)
        scaler.update()


# The equation.


def test_the_step_is_the_base_step_with_the_gradient_of_the_worst_neighbor() -> None:
    w = point()
    opt = SAM(SGD([w], lr=0.1), rho=0.05)
    start = w.detach().clone()
    backward(bowl(w))
    with opt.perturbed():
        g = H * start
        neighbor = start + 0.05 * g / g.norm()
        torch.testing.assert_close(w.detach(), neighbor, rtol=1e-15, atol=1e-15)
        opt.zero_grad()
        backward(bowl(w))
    assert torch.equal(w.detach(), start)
    opt.step()
    torch.testing.assert_close(w.detach(), start - 0.1 * H * neighbor, rtol=1e-15, atol=1e-15)
    assert opt.realized_radius == pytest.approx(0.05, rel=1e-15)


@pytest.mark.parametrize("metric", [None, Monge(), Adaptive(), Fisher()], ids=repr)
@pytest.mark.parametrize("ascent_ema", [None, 0.9])
def test_both_paths_train_alike(metric: Metric | None, ascent_ema: float | None) -> None:
    models = [mlp() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, foreach in zip(models, (False, True), strict=True):
        opt = SAM(
            SGD(model.parameters(), lr=0.1, momentum=0.9), 0.1, metric, foreach=foreach, ascent_ema=ascent_ema
        )
        for _ in range(20):
            one_step(model, opt)
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_radius_zero_is_the_base_bit_for_bit() -> None:
    model = mlp()
    plain = copy.deepcopy(model)
    opt, base = SAM(AdamW(model.parameters()), rho=0.0), AdamW(plain.parameters())
    for _ in range(5):
        one_step(model, opt)
        base.zero_grad()
        slope(plain)
        base.step()
    assert same(weights(model), weights(plain))


@pytest.mark.parametrize("metric", [None, Monge(), Fisher()], ids=repr)
def test_to_maximize_minus_l_is_to_minimize_l(metric: Metric | None) -> None:
    results = []
    for factor, maximize in ((1.0, False), (-1.0, True)):
        torch.manual_seed(0)
        model = mlp()
        opt = SAM(SGD(model.parameters(), lr=0.1, maximize=maximize), 0.1, metric)
        for _ in range(3):
            slope(model, factor)
            with opt.perturbed():
                opt.zero_grad()
                slope(model, factor)
            opt.step()
            opt.zero_grad()
        results.append(weights(model))
    assert same(*results)


def test_the_metric_comes_from_the_base_that_has_one() -> None:
    class Learned(OptimizerWrapper):
        PREFIX = "learned_"
        seen: bool | None = None

        def geometry(self) -> Metric:
            self.seen = self.inside_perturbation
            return Preconditioned(lambda vectors, parameters: [v / H for v in vectors])

        def step(self, closure: Any = None) -> Any:
            return self.base.step()

    w = point()
    base = Learned(SGD([w], lr=0.1))
    opt = SAM(base, rho=0.05)
    backward(bowl(w))
    start = w.detach().clone()
    with opt.perturbed():
        torch.testing.assert_close(w.detach(), start + 0.05 * start / start.norm())  # U g = w, euclidean norm
        assert base.inside_perturbation
    assert base.seen is False  # asked before anything was perturbed
    with SAM(base, rho=0.05, norm="dual").perturbed():
        q = (H * start * start).sum()
        torch.testing.assert_close(w.detach(), start + 0.05 * start / q.sqrt())
    with SAM(
        base, rho=0.05, metric=Monge()
    ).perturbed():  # an explicit metric wins, the base is asked all the same
        s = (H * start).norm()
        torch.testing.assert_close(w.detach(), start + 0.05 * H * start / (s * (1 + s**2).sqrt()))
    assert not base.inside_perturbation


# When to perturb.


def test_every_and_start() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.1), every=3, start=2)
    due, moved = [], []
    for _ in range(9):
        slope(model)
        before = weights(model)
        due.append(opt.perturbation_due)
        with opt.perturbed():
            moved.append(not same(weights(model), before))
            opt.zero_grad()
            slope(model)
        opt.step()
        opt.zero_grad()
    assert due == [False, False, True, False, False, True, False, False, True]
    assert moved == due


def test_a_closure_is_evaluated_once_where_no_perturbation_is_due() -> None:
    model, calls = mlp(), []
    opt = SAM(SGD(model.parameters(), lr=0.1), every=2)

    def closure() -> Tensor:
        opt.zero_grad()
        calls.append(1)
        return slope(model)

    for expected in (2, 3, 5, 6):
        opt.step(closure)
        assert len(calls) == expected


def test_a_step_at_learning_rate_zero_counts_nowhere() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.0), every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope(model)
        opt.step(None)
    assert opt.param_groups[0]["sam_steps"] == 0
    opt = SAM(SGD(model.parameters(), lr=torch.tensor(0.0), foreach=False), every=2)
    opt.step()
    assert opt.param_groups[0]["sam_steps"] == 0


def test_the_count_survives_a_checkpoint() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.1), every=3)
    for _ in range(2):
        one_step(model, opt)
    fresh = SAM(SGD(model.parameters(), lr=0.1), every=3)
    fresh.load_state_dict(opt.state_dict())
    assert [opt.perturbation_due, fresh.perturbation_due] == [False, False]
    one_step(model, fresh)
    assert fresh.perturbation_due


# Who is perturbed.


def test_parameters_with_a_gradient_in_one_pass_only() -> None:
    first, second, frozen = point(), point(), point()
    frozen.requires_grad_(False)
    opt = SAM(SGD([first, second, frozen], lr=0.1), rho=0.05)
    start = first.detach().clone()
    backward(bowl(first))
    with opt.perturbed():
        assert not torch.equal(first.detach(), start)
        assert torch.equal(second.detach(), start)
        opt.zero_grad()
        backward(bowl(second))
    assert torch.equal(first.detach(), start)
    opt.step()
    assert torch.equal(first.detach(), start)  # no gradient, no step, and not left at w + epsilon
    torch.testing.assert_close(second.detach(), start - 0.1 * H * start)
    assert torch.equal(frozen.detach(), start)


def test_tied_parameters_are_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.tanh(self.a(x)))
            return out

    model = Tied()
    opt = SAM(SGD(model.parameters(), lr=0.1), rho=0.05)
    backward(model(torch.randn(5, 3)).square().mean())
    before = model.a.weight.detach().clone()
    with opt.perturbed():
        assert float((model.b.weight - before).detach().norm()) == pytest.approx(0.05, rel=1e-5)
    assert torch.equal(model.b.weight, before)


def test_a_radius_for_each_group_one_norm_for_all() -> None:
    a, b = point(), point()
    groups: list[dict[str, Any]] = [{"params": [a], "rho": 0.2}, {"params": [b]}]
    opt = SAM(SGD(groups, lr=0.1), rho=0.05)
    assert [group["rho"] for group in opt.param_groups] == [0.2, 0.05]
    backward(bowl(a) + bowl(b))
    g = H * a.detach()
    norm = (2 * (g * g).sum()).sqrt()
    start = a.detach().clone()
    with opt.perturbed():
        torch.testing.assert_close(a.detach(), start + 0.2 * g / norm)
        torch.testing.assert_close(b.detach(), start + 0.05 * g / norm)
    opt.param_groups[1]["rho"] = torch.tensor(
        0.4, dtype=torch.float64
    )  # a schedule may write numbers or tensors
    with opt.perturbed():
        torch.testing.assert_close(b.detach(), start + 0.4 * g / norm)


def test_complex_parameters_are_pairs_of_reals() -> None:
    z = nn.Parameter(torch.tensor([0.3 - 0.2j, 0.5 + 0.1j], dtype=torch.complex128))
    pair = nn.Parameter(torch.view_as_real(z.detach()).clone())
    for p in (z, pair):

        def loss(p: nn.Parameter = p) -> Tensor:
            return ((torch.view_as_real(p) if p.is_complex() else p) ** 2 * H[:2]).sum()

        opt = SAM(SGD([p], lr=0.1), metric=Monge())
        backward(loss())
        with opt.perturbed():
            opt.zero_grad()
            backward(loss())
        opt.step()
    torch.testing.assert_close(torch.view_as_real(z.detach()), pair.detach(), rtol=1e-14, atol=0)


# NaN and Inf.


def test_a_nan_falls_back_to_the_base_step_and_is_counted() -> None:
    model = mlp()
    plain = copy.deepcopy(model)
    opt, base = SAM(SGD(model.parameters(), lr=0.1)), SGD(plain.parameters(), lr=0.1)
    for bad in (float("nan"), float("inf")):
        slope(model)
        gradient = next(model.parameters()).grad
        assert gradient is not None
        gradient[0, 0] = bad
        before = weights(model)
        with opt.perturbed():
            assert same(weights(model), before)
            opt.zero_grad()
            slope(model)
        opt.step()
        base.zero_grad()
        slope(plain)
        base.step()
        assert same(weights(model), weights(plain))
    assert opt.nonfinite_count == 2
    assert opt.realized_radius == 0.0
    opt.zero_grad()
    one_step(model, opt)
    assert opt.nonfinite_count == 2


def test_a_nan_raises_if_asked_and_touches_no_weight() -> None:
    model = mlp()
    opt = SAM(SGD(model.named_parameters(), lr=0.1), nonfinite="raise", ascent_ema=0.9)
    slope(model)
    bias = dict(model.named_parameters())["2.bias"]
    bias.grad = torch.full_like(bias, float("nan"))
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"2\.bias.*nonfinite"), opt.perturbed():
        pass
    assert same(weights(model), before)
    assert not opt.inside_perturbation


def test_a_nan_does_not_enter_the_average() -> None:
    w = point()
    opt = SAM(SGD([w], lr=0.1), ascent_ema=0.9)
    backward(bowl(w))
    with opt.perturbed():
        pass
    before = opt.own[w]["ema"].clone()
    w.grad = torch.full_like(w, float("nan"))
    with opt.perturbed():
        pass
    assert torch.equal(opt.own[w]["ema"], before)
    assert before.any()


# Friendly SAM.


def test_the_ascent_vector_may_be_the_gradient_minus_its_average() -> None:
    w = point()
    opt = SAM(SGD([w], lr=0.1), rho=0.05, ascent_ema=0.9)
    expected, m = w.detach().clone(), torch.zeros(3, dtype=torch.float64)
    for _ in range(6):
        opt.zero_grad()
        backward(bowl(w))
        with opt.perturbed():
            opt.zero_grad()
            backward(bowl(w))
        opt.step()
        g = H * expected
        v = g - m  # the first step uses the raw gradient
        m = 0.9 * m + 0.1 * g  # updated after the subtraction
        expected = expected - 0.1 * H * (expected + 0.05 * v / v.norm())
        torch.testing.assert_close(w.detach(), expected, rtol=1e-13, atol=1e-14)
    assert opt.state_dict()["state"][0].keys() == {"sam_ema"}
    assert not opt.base.state
    torch.testing.assert_close(opt.own[w]["ema"], m, rtol=1e-13, atol=0)


def test_the_average_is_kept_apart_from_the_base_and_in_its_own_precision() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = SAM(AdamW([w], lr=0.1), ascent_ema=0.9)
    backward((w.float() * torch.tensor([1.0, 2.0, 3.0])).sum())
    with pytest.warns(UserWarning, match="bfloat16"), opt.perturbed():
        pass
    opt.own[w]["ema"].fill_(1.001)  # 1.0 in bfloat16
    assert opt.base.state == {}  # AdamW initializes its state only where it finds none
    opt.step()
    assert opt.base.state[w].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert opt.state[w].keys() == {"step", "exp_avg", "exp_avg_sq", "sam_ema"}
    fresh = SAM(AdamW([w], lr=0.1), ascent_ema=0.9)
    saved = opt.state_dict()
    fresh.load_state_dict(saved)
    assert fresh.own[w]["ema"].dtype is torch.float32
    assert torch.equal(fresh.own[w]["ema"], opt.own[w]["ema"])
    assert fresh.base.state[w].keys() == {"step", "exp_avg", "exp_avg_sq"}
    fresh.own[w]["ema"].zero_()
    assert saved["state"][0]["sam_ema"].all()  # loaded, not aliased


# Mixed precision.


@pytest.mark.parametrize("metric", [None, Monge(), Adaptive(), Fisher()], ids=repr)
@pytest.mark.parametrize("ascent_ema", [None, 0.9])
def test_under_a_grad_scaler_every_metric_steps_as_without(
    metric: Metric | None, ascent_ema: float | None
) -> None:
    model = mlp()
    scaled_model = copy.deepcopy(model)
    plain = SAM(SGD(model.parameters(), lr=0.1), 0.1, metric, ascent_ema=ascent_ema)
    opt = SAM(SGD(scaled_model.parameters(), lr=0.1), 0.1, metric, ascent_ema=ascent_ema)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scaler.scale(torch.zeros(()))
    for _ in range(8):
        one_step(model, plain)
        one_step(scaled_model, opt, scaler)
    assert scaler.get_scale() == 2.0**12
    for a, b in zip(weights(model), weights(scaled_model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_monge_without_the_scaler_sees_a_steeper_hill() -> None:
    w = point()
    opt = SAM(SGD([w], lr=0.1), rho=0.05, metric=Monge())
    backward(1024 * bowl(w))
    with opt.perturbed():
        pass
    s = 1024 * (H * w.detach()).norm()
    assert opt.realized_radius == pytest.approx(0.05 / float((1 + s**2).sqrt()))


def test_a_disabled_scaler_is_no_scaler() -> None:
    model = mlp()
    plain_model = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    opt, plain = (SAM(SGD(m.parameters(), lr=0.1), metric=Monge()) for m in (model, plain_model))
    one_step(model, opt, scaler)
    one_step(plain_model, plain)

    def closure() -> Tensor:
        opt.zero_grad()
        return slope(model)

    assert scaler.step(opt, closure) is not None
    one_step(plain_model, plain)
    assert same(weights(model), weights(plain_model))


def test_half_precision_gradients_give_a_float32_step() -> None:
    w = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    opt = SAM(SGD([w], lr=0.1), rho=0.05)
    w.grad = torch.tensor([6e4, 6e4, 0.0], dtype=torch.float16)  # its norm overflows float16
    with opt.perturbed():
        torch.testing.assert_close(
            w.detach().float(), torch.tensor([1.0, 1.0, 0.0]) * 0.05 / 2**0.5, rtol=1e-3, atol=0
        )


# Randomness and statistics.


def test_a_closure_sees_the_same_dropout_twice_and_the_stream_goes_on_once() -> None:
    model = mlp(dropout=0.5)
    masks: list[Tensor] = []
    model[2].register_forward_hook(lambda module, args, out: masks.append(out == 0))
    opt = SAM(SGD(model.parameters(), lr=0.1))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = slope(model)
        if len(masks) == 2:
            torch.rand(7)  # whatever else the second pass draws
        return loss

    torch.manual_seed(3)
    opt.step(closure)
    after = torch.rand(1)
    assert len(masks) == 2
    assert torch.equal(masks[0], masks[1])
    torch.manual_seed(3)
    model(data()[0])
    assert torch.equal(after, torch.rand(1))


def test_a_closure_freezes_batch_statistics_if_the_model_is_known() -> None:
    for known in (True, False):
        model = mlp(norm=True)
        opt = SAM(SGD(model.parameters(), lr=0.1), model=model if known else None)

        def closure(model: nn.Module = model, opt: SAM = opt) -> Tensor:
            opt.zero_grad()
            return slope(model)

        opt.step(closure)
        assert int(dict(model.named_buffers())["1.num_batches_tracked"]) == (1 if known else 2)


def test_perturbed_and_frozen_statistics_in_one_line() -> None:
    model = mlp(norm=True)
    opt = SAM(SGD(model.parameters(), lr=0.1))
    slope(model)
    mean = dict(model.named_buffers())["1.running_mean"]
    before = mean.clone()
    with opt.perturbed(), frozen_batch_stats(model):
        slope(model)
    assert torch.equal(mean, before)


# Notes to the user.


def test_one_warning_for_bfloat16_weights() -> None:
    w = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    opt = SAM(SGD([w], lr=0.1))
    w.grad = torch.ones_like(w)
    with pytest.warns(UserWarning, match=r"bfloat16.*float32"), opt.perturbed():
        pass
    with opt.perturbed():  # a second warning would be an error here
        pass


def test_what_the_warning_is_about() -> None:
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        w = nn.Parameter((0.03 * torch.randn(1_000_000)).to(dtype))
        start = w.detach().clone()
        opt = SAM(SGD([w], lr=0.1), rho=0.05)
        w.grad = torch.randn(1_000_000).to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with opt.perturbed():
                moved[dtype] = float((w != start).float().mean())
    assert moved[torch.float32] > 0.99
    assert moved[torch.bfloat16] == pytest.approx(1 / 3, abs=0.03)


def test_one_warning_where_nobody_ever_perturbs() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.1))
    opt.step()  # no gradients: nothing to warn of
    slope(model)
    with pytest.warns(UserWarning, match="without a perturbation") as caught:
        opt.step()
    assert caught[0].filename == __file__
    opt.step()  # a second warning would be an error here
    later = SAM(SGD(model.parameters(), lr=0.1), start=5)
    later.step()


# Wrapping, loading, copying.


def test_a_base_may_be_wrapped_again() -> None:
    w, other = point(), point()
    groups: list[dict[str, Any]] = [{"params": [w]}, {"params": [other], "rho": 0.7}]
    base = SGD(groups, lr=0.1)
    SAM(base, rho=0.05)
    SAM(base, rho=0.1)
    assert [group["rho"] for group in base.param_groups] == [0.1, 0.7]


def test_a_checkpoint_of_the_bare_base_can_be_loaded() -> None:
    w = point()
    base = SGD([w], lr=0.1, momentum=0.9)
    backward(bowl(w))
    base.step()
    saved = base.state_dict()
    opt = SAM(SGD([w], lr=0.5, momentum=0.9), rho=0.3)
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["lr"] == 0.1
    assert opt.param_groups[0]["rho"] == 0.3
    assert torch.equal(opt.state[w]["momentum_buffer"], base.state[w]["momentum_buffer"])
    assert "rho" not in saved["param_groups"][0]


def test_state_groups_and_defaults_are_the_base_s() -> None:
    w = point()
    opt = SAM(SGD([w], lr=0.1, momentum=0.9), start=1)
    assert opt.state is opt.base.state
    assert opt.param_groups is opt.base.param_groups
    assert opt.defaults is opt.base.defaults
    opt.param_groups = opt.param_groups[:]
    assert opt.param_groups is opt.base.param_groups
    backward(bowl(w))
    opt.step()
    opt.state = type(opt.state)(dict)  # the usual way to forget momentum
    assert not opt.base.state
    assert "SGD" in repr(opt)
    with pytest.raises(AttributeError, match="refit"):
        _ = opt.refit


def test_a_copy_made_inside_the_block_is_not_inside() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.1))
    slope(model)
    with opt.perturbed():
        other = copy.deepcopy(opt)
    with other.perturbed():
        pass


def test_a_copy_with_a_model_is_of_one_piece() -> None:
    model = mlp(norm=True)
    opt = SAM(SGD(model.parameters(), lr=0.1), model=model)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert isinstance(other.model, nn.Module)
        assert other.model is not model
        for p, q in zip(other.model.parameters(), other.param_groups[0]["params"], strict=True):
            assert p is q


def test_an_abandoned_block_restores_too() -> None:
    model = mlp()
    opt = SAM(SGD(model.parameters(), lr=0.1))
    slope(model)
    before = weights(model)

    def leaves() -> Iterator[None]:
        with opt.perturbed():
            yield

    generator = leaves()
    next(generator)
    assert not same(weights(model), before)
    del generator
    assert same(weights(model), before)
