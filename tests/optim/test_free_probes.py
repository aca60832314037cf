"""U learns from the gradients that steps make: which one, in what units, on how many ranks, and when not.

With structure="diagonal" and no memory what is learned from g is g^2, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.optim.preconditioner.closed_form import due
from tests.optim._ranks import run_on_ranks
from tests.optim._training import backward, same, weights

NOW = LLQRConfig(structure="diagonal").replace(curvature_memory=1.0)
CONFIGS = {"default": LLQRConfig().replace(basis_every=2), "diagonal": LLQRConfig(structure="diagonal")}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :3] + 0.5 * x[:, 2:]).argmax(1)


def llqr(model: nn.Module, config: LLQRConfig | None = None) -> LLQR:
    base = SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    return LLQR(base, model, config=config)


def slope(model: nn.Module, t: int, parts: int = 1, factor: Any = 1.0) -> None:
    """The gradient of the batch's mean loss, added up over micro-batches."""
    model.zero_grad()
    x, y = batch(t, next(model.parameters()).dtype)
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        backward(factor * cross_entropy(model(x_part), y_part) / parts)


def remembered(opt: LLQR) -> list[Tensor]:
    """What is remembered of the curvature, and of bases where there are some."""
    arrays = [a.clone() for own in opt.own.values() for a in own.values() if isinstance(a, Tensor)]
    assert arrays
    return arrays


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def curvature(opt: LLQR) -> list[Tensor]:
    return [own["c"].reshape(p.shape).clone() for p, own in opt.own.items()]


def test_the_default_needs_nothing_but_a_base_and_a_model() -> None:
    model = network()
    opt = llqr(model)
    first = cross_entropy(model(batch(0)[0]), batch(0)[1])
    for t in range(40):
        assert not opt.refit_due
        slope(model, t % 4)
        opt.step()
    assert opt.param_groups[0]["llqr_refits"] == 40
    assert all(row.distance > 0.1 and row.cosine > 0 for row in opt.report())
    assert cross_entropy(model(batch(0)[0]), batch(0)[1]) < 0.5 * first


def test_the_first_step_is_its_line() -> None:
    """c = g^2 in units of each tensor's mean; U = 1/(c + 0.1); S of root mean square 1 in each tensor."""
    model = network()
    opt = llqr(model, NOW)
    slope(model, 0)
    g, before = gradients(model), weights(model)
    opt.step()
    for p, w, slope_of in zip(model.parameters(), before, g, strict=True):
        c = slope_of.square()
        M = 1.9 * slope_of  # Nesterov's first update
        S = M / (c / c.mean() + 0.1)
        torch.testing.assert_close(p.detach(), w - 0.02 * S / S.square().mean().sqrt(), rtol=1e-7, atol=1e-12)


@configs
@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_no_scale_of_the_loss_changes_a_step(config: LLQRConfig, scale: float) -> None:
    model, other = network(), network()
    opts = [llqr(m, config) for m in (model, other)]
    for t in range(6):
        slope(model, t)
        slope(other, t, factor=scale)
        for opt in opts:
            opt.step()
    torch.testing.assert_close(weights(other), weights(model), rtol=1e-9, atol=1e-11)


@configs
def test_accumulated_gradients_teach_as_one(config: LLQRConfig) -> None:
    model, other = network(), network()
    opts = [llqr(m, config) for m in (model, other)]
    for t in range(6):
        slope(model, t)
        slope(other, t, parts=4)
        for opt in opts:
            opt.step()
    torch.testing.assert_close(remembered(opts[1]), remembered(opts[0]), rtol=1e-8, atol=1e-12)


def test_a_clipped_gradient_teaches_as_it_is() -> None:
    model = network()
    opt = llqr(model, NOW)
    slope(model, 0)
    nn.utils.clip_grad_value_(model.parameters(), 0.01)
    clipped = gradients(model)
    opt.step()
    torch.testing.assert_close(curvature(opt), [g.square() for g in clipped], rtol=1e-12, atol=0)


def test_under_sam_the_first_pass_teaches_and_the_second_does_not() -> None:
    model = network()
    opt = SAM(llqr(model, NOW), rho=0.5)
    inner: Any = opt.base
    slope(model, 0)
    first = gradients(model)
    with opt.perturbed():
        torch.testing.assert_close(curvature(inner), [g.square() for g in first], rtol=1e-12, atol=0)
        slope(model, 0)
        second = gradients(model)
    learned = remembered(inner)
    opt.step()
    assert same(remembered(inner), learned)
    assert not torch.allclose(first[0], second[0], rtol=1e-2)
    assert opt.param_groups[0]["llqr_refits"] == 1


@pytest.mark.parametrize("sam", [False, True])
@configs
def test_a_loss_scale_is_taken_off(config: LLQRConfig, sam: bool) -> None:
    """A power of two changes no digit."""
    ends = []
    for scale in (1.0, 1024.0):
        model = network(torch.float32)
        inner = llqr(model, config)
        opt: Any = SAM(inner, rho=0.1) if sam else inner
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for t in range(5):
            factor = scaler.scale(torch.ones(()))
            slope(model, t, factor=factor)
            if sam:
                with opt.perturbed(scaler):
                    slope(model, t, factor=factor)
            scaler.step(opt)
            scaler.update()
        ends.append([*weights(model), *remembered(inner)])
    assert same(*ends)


@configs
def test_autocast_around_the_step_changes_nothing(config: LLQRConfig) -> None:
    ends = []
    for around in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        model = network(torch.float32)
        opt = SAM(llqr(model, config), rho=0.1)
        for t in range(5):
            slope(model, t)
            with around, opt.perturbed():
                pass
            with around:
                opt.step()
        ends.append(weights(model))
    assert same(*ends)


@configs
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_teaches_nothing(config: LLQRConfig, value: float) -> None:
    model = network()
    opt = llqr(model, config if config.structure == "diagonal" else config.replace(basis_every=100))
    for t in range(3):  # the first two draw bases
        slope(model, t)
        opt.step()
    poisoned, *others = model.parameters()
    before = {p: {n: a.clone() for n, a in opt.own[p].items() if isinstance(a, Tensor)} for p in opt.own}
    slope(model, 1)
    assert poisoned.grad is not None
    poisoned.grad[0, 0] = value
    SAM(opt, rho=0.1).base.geometry()  # type: ignore[attr-defined]
    for name, array in before[poisoned].items():
        assert torch.equal(opt.own[poisoned][name], array)
    for p in others:
        assert not torch.equal(opt.own[p]["c"], before[p]["c"])


@configs
def test_a_tensor_without_a_gradient_keeps_what_it_knows(config: LLQRConfig) -> None:
    model = network()
    opt = llqr(model, config)
    slope(model, 0)
    opt.step()
    resting = next(model.parameters())
    before = {n: a.clone() for n, a in opt.own[resting].items() if isinstance(a, Tensor)}
    slope(model, 1)
    resting.grad = None
    opt.step()
    for name, array in before.items():
        assert torch.equal(opt.own[resting][name], array)


def test_at_learning_rate_zero_nothing_is_learned() -> None:
    model = network()
    opt = llqr(model)
    for group in opt.param_groups:
        group["lr"] = 0.0
    slope(model, 0)
    opt.step()
    assert opt.param_groups[0]["llqr_refits"] == opt.param_groups[0]["llqr_steps"] == 0


def test_a_closure_teaches_by_the_gradient_that_it_makes() -> None:
    model, other = network(), network()
    by_closure, by_hand = llqr(model), llqr(other)
    for t in range(3):

        def closure(t: int = t) -> float:
            slope(model, t)
            return 0.0

        by_closure.step(closure)
        slope(other, t)
        by_hand.step()
    assert same(weights(model), weights(other))


def test_a_refit_teaches_by_the_gradient_on_its_batch() -> None:
    model = network().eval()
    opt = LLQR(SGD(model.parameters(), lr=0.02), model, cross_entropy, NOW)
    opt.refit(*batch(7))
    slope(model, 7)
    torch.testing.assert_close(curvature(opt), [g.square() for g in gradients(model)], rtol=1e-10, atol=0)


def test_a_refit_without_a_loss_says_what_is_missing() -> None:
    with pytest.raises(
        ValueError, match=r"loss_fn=None, but probe batches need it; pass LLQR\(base, model, loss_fn\)"
    ):
        llqr(network()).refit(*batch(0))
    model = network()
    with pytest.raises(ValueError, match="loss_fn=None, but probe batches need it"):
        LLQR(SGD(model.parameters(), lr=0.02), model, config=LLQRConfig.sampled())


# Several ranks: half a batch each.


def pictures() -> nn.Sequential:
    """A side of 784, in blocks."""
    torch.manual_seed(0)
    stretch = nn.Linear(5, 784, bias=False).requires_grad_(False)
    return nn.Sequential(stretch, nn.Linear(784, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def train(model: nn.Module, seen: nn.Module, share: Callable[[Tensor], Tensor], parts: int = 1) -> LLQR:
    """Five steps; micro-batches but the last without synchronization, where the model knows that."""
    opt = llqr(seen, CONFIGS["default"])
    for t in range(5):
        opt.zero_grad()
        x, y = map(share, batch(t))
        for part, (x_part, y_part) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            apart = part < parts - 1 and isinstance(model, DistributedDataParallel)
            alone: Any = model
            with alone.no_sync() if apart else nullcontext():
                backward(cross_entropy(model(x_part), y_part) / parts)
        opt.step()
    return opt


def on_a_rank(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def half(whole: Tensor) -> Tensor:
        return whole.chunk(2)[rank]

    cases: list[tuple[str, nn.Module, int]] = [
        ("wrapped", network(), 1),
        ("accumulated", network(), 2),
        ("pictures", pictures(), 1),
    ]
    for name, inside, parts in cases:
        model = DistributedDataParallel(inside)
        with ExitStack() as refused:
            for collective in ("broadcast", "all_gather", "all_gather_into_tensor"):
                refused.enter_context(patch.object(dist, collective, side_effect=AssertionError(collective)))
            sent = refused.enter_context(patch.object(dist, "all_reduce", wraps=dist.all_reduce))
            opt = train(model, model, half, parts)
        found[name] = [*weights(model), *remembered(opt)]
        found[f"{name}: messages"] = sent.call_count
    model = DistributedDataParallel(network())
    opt = train(model, model.module, half)  # LLQR does not see who averages: averaging again changes nothing
    found["module"] = [*weights(model), *remembered(opt)]

    model = DistributedDataParallel(network())
    opt = llqr(model, NOW)
    x, y = map(half, batch(0))
    with model.no_sync():
        backward(cross_entropy(model(x), y))
        SAM(opt, rho=0.1).base.geometry()  # type: ignore[attr-defined]
    found["local gradients"] = curvature(opt)
    return found


def test_ranks_learn_the_same_from_their_mean() -> None:
    first, second = run_on_ranks(on_a_rank)
    renewals = sum(due(count, 2) for count in range(1, 6))
    assert {name: n for name, n in first.items() if "messages" in name} == {
        f"{name}: messages": renewals for name in ("wrapped", "accumulated", "pictures")
    }  # the bases, of which every rank makes its share, and nothing else
    for name in ("wrapped", "accumulated", "pictures", "module", "local gradients"):
        assert same(first[name], second[name]), name
    model = network()
    opt = train(model, model, lambda whole: whole)
    alone = [*weights(model), *remembered(opt)]
    for name in ("wrapped", "accumulated", "module"):
        torch.testing.assert_close(first[name], alone, rtol=1e-8, atol=1e-10)
    model = pictures()
    opt = train(model, model, lambda whole: whole)
    wide = [*weights(model), *remembered(opt)]
    assert any(array.shape == (7, 112, 112) for array in wide)
    torch.testing.assert_close(first["pictures"], wide, rtol=1e-8, atol=1e-10)
    model = network()
    slope(model, 0)
    expected = [g.square() for g in gradients(model)]
    torch.testing.assert_close(first["local gradients"], expected, rtol=1e-10, atol=0)
