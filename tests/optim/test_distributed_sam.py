"""Two processes take the step of one: synchronized perturbation, m-sharpness, sharded parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from llqr_sam_ref.optim import SAM, Adaptive, Fisher, Metric, Monge, frozen_batch_stats
from tests.optim._ranks import run_on_ranks
from tests.optim._training import backward, same, weights

STEPS, RANKS = 4, 2
VARIANTS: dict[str, tuple[Metric | None, dict[str, Any]]] = {
    "sam": (None, {}),
    "monge": (Monge(), {}),
    "adaptive": (Adaptive(), {}),
    "fisher": (Fisher(), {"norm": "euclidean"}),
    "friendly": (Monge(), {"ascent_ema": 0.9}),
    "layerwise": (None, {"layerwise": True}),
}
variants = pytest.mark.parametrize("name", VARIANTS)
FULL = StateDictOptions(full_state_dict=True)


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle: list[nn.Module] = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()


def optimizer(name: str, model: nn.Module) -> SAM:
    metric, options = VARIANTS[name]
    return SAM(SGD(model.named_parameters(), lr=0.1, momentum=0.9), 0.1, metric, **options)


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def slope(model: nn.Module, x: Tensor, y: Tensor) -> None:
    backward(nn.functional.cross_entropy(model(x), y))


def synchronized_step(model: nn.Module, opt: SAM, x: Tensor, y: Tensor) -> None:
    """The plain loop: under DDP and FSDP2 the ascent gradient is that of the whole batch."""
    opt.zero_grad()
    slope(model, x, y)
    with opt.perturbed(), frozen_batch_stats(model):
        opt.zero_grad()
        slope(model, x, y)
    opt.step()


def own_step(model: DistributedDataParallel, opt: SAM, x: Tensor, y: Tensor) -> None:
    """m-sharpness: no_sync reaches around forward and backward of the first pass."""
    opt.zero_grad()
    with model.no_sync():
        slope(model, x, y)
    with opt.perturbed(), frozen_batch_stats(model):
        opt.zero_grad()
        slope(model, x, y)
    opt.step()


# What every rank does.


def shard(rank: int, t: int) -> tuple[Tensor, Tensor]:
    x, y = batch(t)
    return x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]


def under_ddp(rank: int, name: str, *, own: bool) -> list[Tensor]:
    model = network()
    parallel, opt = DistributedDataParallel(model), optimizer(name, model)
    for t in range(STEPS):
        (own_step if own else synchronized_step)(parallel, opt, *shard(rank, t))
    return weights(model)


def with_batch_statistics(rank: int) -> dict[str, Tensor]:
    model = network(norm=True)
    parallel, opt = DistributedDataParallel(model), optimizer("sam", model)
    for t in range(STEPS):
        own_step(parallel, opt, *shard(rank, t))
    return dict(model.state_dict())


def with_a_nan_on_one_rank(rank: int) -> tuple[list[Tensor], int]:
    model = network()
    parallel, opt = DistributedDataParallel(model), optimizer("sam", model)
    x, y = shard(rank, 0)
    with parallel.no_sync():
        slope(parallel, x * (float("nan") if rank == 1 else 1.0), y)
    with opt.perturbed():
        opt.zero_grad()
        slope(parallel, x, y)
    opt.step()
    return weights(model), opt.nonfinite_count


def under_fsdp(rank: int, name: str) -> tuple[dict[str, Any], float, bool]:
    model: nn.Module = network()
    fully_shard(model[0])  # type: ignore[index]
    fully_shard(model)
    opt = optimizer(name, model)
    restored = True
    for t in range(STEPS):
        before = [p.to_local().clone() for p in model.parameters() if isinstance(p, DTensor)]
        assert len(before) == 4
        x, y = shard(rank, t)
        opt.zero_grad()
        slope(model, x, y)
        with opt.perturbed():
            opt.zero_grad()
            slope(model, x, y)
        restored &= same([p.to_local() for p in model.parameters() if isinstance(p, DTensor)], before)
        opt.step()
    full = get_model_state_dict(model, options=FULL)
    return full, opt.realized_radius, restored


def resumed_under_fsdp(rank: int) -> bool:
    results = []
    saved: dict[str, Any] = {}
    for resume in (False, True):
        model: nn.Module = network()
        fully_shard(model)
        opt = SAM(AdamW(model.parameters(), lr=0.01), ascent_ema=0.9, every=2)
        if resume:
            set_optimizer_state_dict(model, opt, saved["opt"], options=FULL)
            model.load_state_dict(saved["model"])
        else:
            for t in range(3):
                synchronized_step(model, opt, *shard(rank, t))
            opt.zero_grad()
            saved["opt"] = copy.deepcopy(get_optimizer_state_dict(model, opt, options=FULL))
            saved["model"] = copy.deepcopy(model.state_dict())
        for t in range(3, 6):
            synchronized_step(model, opt, *shard(rank, t))
        results.append([p.to_local().clone() for p in model.parameters() if isinstance(p, DTensor)])
    return same(*results)


def everything(rank: int) -> dict[str, Any]:
    return {
        "synchronized": {name: under_ddp(rank, name, own=False) for name in VARIANTS},
        "own": {name: under_ddp(rank, name, own=True) for name in VARIANTS},
        "statistics": with_batch_statistics(rank),
        "nan": with_a_nan_on_one_rank(rank),
        "fsdp": {name: under_fsdp(rank, name) for name in VARIANTS},
        "resumed": resumed_under_fsdp(rank),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_on_ranks(everything, ranks=RANKS)


# What one process does.


def alone(name: str) -> tuple[list[Tensor], float]:
    model = network()
    opt = optimizer(name, model)
    for t in range(STEPS):
        synchronized_step(model, opt, *batch(t))
    return weights(model), opt.realized_radius


def shard_by_shard(name: str) -> list[Tensor]:
    """m-sharpness on one process: every shard perturbs by its own gradient, the results are averaged."""
    model = network()
    helpers = [optimizer(name, model) for _ in range(RANKS)]
    base = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for t in range(STEPS):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for rank, helper in enumerate(helpers):
            base.zero_grad()
            slope(model, *shard(rank, t))
            with helper.perturbed():
                base.zero_grad()
                slope(model, *shard(rank, t))
            for sum_, p in zip(total, model.parameters(), strict=True):
                assert p.grad is not None
                sum_ += p.grad / RANKS
        for sum_, p in zip(total, model.parameters(), strict=True):
            p.grad = sum_
        base.step()
    return weights(model)


def assert_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@variants
def test_the_plain_loop_perturbs_by_the_global_batch(ranks: list[dict[str, Any]], name: str) -> None:
    assert same(ranks[0]["synchronized"][name], ranks[1]["synchronized"][name])
    assert_close(ranks[0]["synchronized"][name], alone(name)[0])


@variants
def test_no_sync_in_the_first_pass_is_m_sharpness(ranks: list[dict[str, Any]], name: str) -> None:
    assert same(ranks[0]["own"][name], ranks[1]["own"][name])
    assert_close(ranks[0]["own"][name], shard_by_shard(name))
    difference = max(
        float((a - b).abs().max()) for a, b in zip(ranks[0]["own"][name], alone(name)[0], strict=True)
    )
    assert difference > 1e-4  # another algorithm


def test_ranks_agree_with_batch_normalization_and_statistics_see_every_batch_once(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert int(rank["statistics"]["1.num_batches_tracked"]) == STEPS
    parameters = [[v for k, v in rank["statistics"].items() if "running" not in k] for rank in ranks]
    assert same(*parameters)


def test_a_nan_on_one_rank_costs_that_rank_its_perturbation(ranks: list[dict[str, Any]]) -> None:
    assert [rank["nan"][1] for rank in ranks] == [0, 1]
    assert same(ranks[0]["nan"][0], ranks[1]["nan"][0])
    assert all(w.isfinite().all() for w in ranks[0]["nan"][0])


@variants
def test_sharded_parameters_share_one_norm(ranks: list[dict[str, Any]], name: str) -> None:
    expected, radius = alone(name)
    for rank in ranks:
        full, realized, restored = rank["fsdp"][name]
        assert restored
        assert realized == pytest.approx(radius, rel=1e-10)
        if full:  # the whole state is on rank 0
            assert_close(list(full.values()), expected)
    assert ranks[0]["fsdp"][name][0]


def test_a_sharded_run_resumes_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["resumed"] for rank in ranks)
