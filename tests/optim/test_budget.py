"""A budget for bases: the model of the cost counts what a step does, and the limit is the widest that fits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode

from llqr_sam_ref import LLQR, LLQRConfig
from llqr_sam_ref.config import ClosedForm
from llqr_sam_ref.optim.budget import Plan, cost, operations, within_overhead
from tests.optim._training import backward, same


def network(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 10)).to(dtype)


def closure_of(model: nn.Module, size: int = 64, dtype: torch.dtype = torch.float64) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(24, 24, generator=generator, dtype=dtype)

    def closure() -> Tensor:
        x = torch.randn(size, 24, generator=generator, dtype=dtype) @ mixed
        model.zero_grad()
        return backward(cross_entropy(model(x), x[:, :10].argmax(1)))

    return closure


@pytest.mark.parametrize("gram_every", [1, 2])
@pytest.mark.parametrize("max_side", [128, 8, 0])
def test_the_model_counts_the_products_of_a_step(max_side: int, gram_every: int) -> None:
    """On average over twelve steps, renewals included; solving with a triangle is not counted by torch, but by us."""
    config = LLQRConfig(max_side=max_side).replace(basis_every=4, gram_every=gram_every)
    model = network(torch.float32)
    opt, closure = (
        LLQR(SGD(model.parameters(), lr=0.01, momentum=0.9), model, config=config),
        closure_of(model, dtype=torch.float32),
    )
    for _ in range(4):
        closure()
        opt.step()
    with FlopCounterMode(display=False) as counter:
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            opt.step()
    widths = {w: min(w, max_side) for w in (24, 16, 10)}
    widths[10] = {128: 10, 8: 5, 0: 0}[max_side]
    widths[24], widths[16] = {128: (24, 16), 8: (8, 8), 0: (0, 0)}[max_side]
    assert isinstance(config.solver, ClosedForm)
    expected, uncounted = 0.0, 0.0
    for shape in ((16, 24), (10, 16)):
        expected += operations(shape, (widths[shape[0]], widths[shape[1]]), config.solver)
        uncounted += sum(2 * side * widths[side] ** 2 for side in shape) / 4
    assert counter.get_total_flops() / 12 == pytest.approx(expected - uncounted, rel=1e-12)


def test_a_plan_is_the_widest_that_fits_and_leaves_the_model_alone() -> None:
    model = network()
    closure = closure_of(model)
    closure()
    before = [p.grad.clone() for p in model.parameters()], copy.deepcopy(model.state_dict())
    plans = {share: within_overhead(share, model, closure) for share in (0.0, 0.1, 0.3, 0.5, 10.0)}
    assert same(before[0], [p.grad for p in model.parameters()])
    assert same(list(before[1].values()), list(model.state_dict().values()))
    limits = [plan.config.max_side for plan in plans.values()]
    assert limits == [0, 0, 8, 16, 128]
    for share, plan in plans.items():
        assert plan.overhead <= share
        assert plan.overhead == cost(model, LLQRConfig(), plan.config.max_side) / plan.gradient
    for share, wider in ((0.1, 8), (0.3, 16), (0.5, 32)):
        assert cost(model, LLQRConfig(), wider) / plans[share].gradient > share


def test_a_gradient_is_counted() -> None:
    """Forward, and backward but for the input's gradient: 2 (2 n) for the first layer, 3 (2 n) for the second."""
    model = network()
    plan = within_overhead(0.1, model, closure_of(model))
    data = 24 * 24  # which the closure mixes
    assert plan.gradient == 64 * 2 * (2 * 24 * 16 + 3 * 16 * 10 + data)
    assert isinstance(plan, Plan)


def test_limits_begin_below_the_widest_side_and_keep_the_rest_of_the_configuration() -> None:
    model = network()
    config = LLQRConfig(max_side=None, step_rule="graft").replace(damping=0.3)
    plan = within_overhead(
        0.8 * cost(model, config, None) / 233472, model, closure_of(model, size=64), config
    )
    assert plan.config.max_side == 16
    assert plan.config == config.replace(max_side=16)


def test_frozen_weights_cost_nothing_and_buffers_stay() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        x = torch.randn(16, 6, dtype=torch.float64)
        model.zero_grad()
        return backward(mse_loss(model(x), x[:, :2]))

    plan = within_overhead(100.0, model, closure)
    assert same(list(before.values()), list(model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
    assert isinstance(plan.config.solver, ClosedForm)
    assert plan.overhead * plan.gradient == operations((2, 8), (2, 8), plan.config.solver)


def test_bad_input_is_refused() -> None:
    model = network()
    closure = closure_of(model)
    for wrong, message in (
        ({"overhead": -0.1}, "overhead=-0.1"),
        ({"overhead": math.nan}, "overhead=nan"),
        ({"config": LLQRConfig(structure="diagonal")}, "structure='diagonal'"),
        ({"config": LLQRConfig.published()}, "has no bases to choose"),
        ({"closure": lambda: None}, "must compute a loss and call backward"),
    ):
        given: dict[str, Any] = {"overhead": 0.1, "closure": closure, **wrong}
        with pytest.raises(ValueError, match=message):
            within_overhead(given.pop("overhead"), model, given.pop("closure"), **given)
