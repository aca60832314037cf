"""A budget for bases: the model of the cost counts what a step does, and the choice goes where the benefit is."""

from __future__ import annotations

import copy
import itertools
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
from llqr_sam_ref.optim.budget import Choice, Plan, _chosen, _hull, operations, table, within_overhead
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


def test_a_plan_keeps_to_its_budget_and_leaves_the_model_alone() -> None:
    model = network()
    closure = closure_of(model)
    closure()
    before = [p.grad.clone() for p in model.parameters()], copy.deepcopy(model.state_dict())
    plans = {share: within_overhead(share, model, closure) for share in (0.0, 0.05, 0.2, 1.0, math.inf)}
    assert same(before[0], [p.grad for p in model.parameters()])
    assert same(list(before[1].values()), list(model.state_dict().values()))
    for share, plan in plans.items():
        assert plan.overhead <= share
        assert plan.overhead == pytest.approx(sum(c.operations for c in plan.choices) / plan.gradient)
    assert [row[1:] for row in plans[0.0].config.sides] == [(0, 0), (0, 0)]
    benefits = [sum(c.benefit for c in plan.choices) for plan in plans.values()]
    assert benefits == sorted(benefits)
    assert benefits[0] == 0 < benefits[-1]


def test_a_gradient_is_counted() -> None:
    """Forward, and backward but for the input's gradient: 2 (2 n) for the first layer, 3 (2 n) for the second."""
    model = network()
    plan = within_overhead(0.1, model, closure_of(model))
    data = 24 * 24  # which the closure mixes
    assert plan.gradient == 64 * 2 * (2 * 24 * 16 + 3 * 16 * 10 + data)
    assert isinstance(plan, Plan)


def test_bases_go_where_gradients_have_directions() -> None:
    """Rows of one matrix are correlated, those of its twin are not; columns of neither."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(64, 12, 12, generator=generator, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    mixing = mixing * torch.logspace(0, -2, 12, dtype=torch.float64)
    tables = {
        "mixed": table("mixed", mixing @ white, LLQRConfig()),
        "white": table("white", white, LLQRConfig()),
    }
    one_side = operations((12, 12), (12, 0), ClosedForm())
    chosen = _chosen(tables, one_side)
    assert chosen["mixed"].widths == (12, 0)
    assert chosen["white"].widths == (0, 0)
    every = _chosen(tables, math.inf)
    assert every["white"].benefit < 0.05 * every["mixed"].benefit


def test_of_two_that_are_worth_the_same_the_wide_one_goes_first() -> None:
    rows = {
        name: [Choice(name, (8, n), (0, 0), 0.0, 0.0), Choice(name, (8, n), (8, n), 100.0 * n, 5.0)]
        for name, n in (("narrow", 16), ("wide", 64))
    }
    assert _chosen(rows, 6400.0)["wide"].widths == (0, 0)
    assert _chosen(rows, 6400.0)["narrow"].widths == (8, 16)
    assert _chosen(rows, 8000.0)["wide"].widths == (8, 64)


def test_the_hull_is_the_best_for_every_price() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        costs, benefits = torch.rand(2, 12, generator=generator, dtype=torch.float64).tolist()
        rows = [Choice("w", (1, 1), (0, 0), 0.0, 0.0)]
        rows += [
            Choice("w", (1, 1), (1, i), c, b - 0.2)
            for i, (c, b) in enumerate(zip(costs, benefits, strict=True))
        ]
        rows.sort(key=lambda r: (r.operations, -r.benefit))
        hull = _hull(rows)
        for price in (0.0, 0.1, 0.5, 1.0, 3.0):

            def value(r: Choice, price: float = price) -> float:
                return r.benefit - price * r.operations

            assert max(map(value, hull)) == pytest.approx(max(map(value, rows)))
        slopes = [
            (b.benefit - a.benefit) / (b.operations - a.operations) for a, b in itertools.pairwise(hull)
        ]
        assert slopes == sorted(slopes, reverse=True)


def test_llqr_follows_the_plan() -> None:
    model = network()
    closure = closure_of(model)
    plan = within_overhead(0.1, model, closure)
    opt = LLQR(SGD(model.parameters(), lr=0.01, momentum=0.9), model, config=plan.config)
    for _ in range(3):
        opt.step(closure)
    names = dict(model.named_parameters())
    for choice in plan.choices:
        arrays = opt.own[names[choice.name]]
        for basis, width in zip(("E_Psi", "E_Phi"), choice.widths, strict=True):
            assert (arrays[basis].shape[-1] if basis in arrays else 0) == width
    twin = network()
    again = LLQR(SGD(twin.parameters(), lr=0.01, momentum=0.9), twin, config=plan.config)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    with pytest.raises(ValueError, match="sides="):
        opt.config = LLQRConfig()
    other = LLQR(SGD(twin.parameters(), lr=0.01), twin)
    with pytest.raises(ValueError, match="build LLQR with the configuration it was saved with"):
        other.load_state_dict(opt.state_dict())


def test_buffers_and_frozen_weights_stay_out_of_it() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        x = torch.randn(16, 6, dtype=torch.float64)
        model.zero_grad()
        return backward(mse_loss(model(x), x[:, :2]))

    plan = within_overhead(1.0, model, closure, samples=4)
    assert same(list(before.values()), list(model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
    assert [c.name for c in plan.choices] == ["2.weight"]


def test_bad_input_is_refused() -> None:
    model = network()
    closure = closure_of(model)
    for wrong, message in (
        ({"overhead": -0.1}, "overhead=-0.1"),
        ({"samples": 5}, "samples=5 is odd"),
        ({"config": LLQRConfig(structure="diagonal")}, "structure='diagonal'"),
        ({"config": LLQRConfig.published()}, "has no bases to choose"),
        ({"closure": lambda: None}, "must call backward"),
    ):
        given: dict[str, Any] = {"overhead": 0.1, "closure": closure, **wrong}
        for p in model.parameters():
            p.grad = None
        with pytest.raises(ValueError, match=message):
            within_overhead(given.pop("overhead"), model, given.pop("closure"), **given)

    def zero() -> Tensor:
        model.zero_grad()
        return backward(
            0.0 * cross_entropy(model(torch.ones(4, 24, dtype=torch.float64)), torch.zeros(4).long())
        )

    with pytest.raises(ValueError, match="plan after some steps"):
        within_overhead(0.1, model, zero)

    def broken() -> Tensor:
        model.zero_grad()
        return backward(
            math.nan * cross_entropy(model(torch.ones(4, 24, dtype=torch.float64)), torch.zeros(4).long())
        )

    with pytest.raises(ValueError, match=r"gradients of '0.weight' that are not finite"):
        within_overhead(0.1, model, broken)
    with pytest.raises(ValueError, match="every row is"):
        LLQRConfig(sides=(("0.weight", 3),))  # type: ignore[arg-type]
