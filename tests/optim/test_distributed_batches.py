"""Probe batches over two ranks: labels that count lie anywhere, and what fails on one rank raises on all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR
from llqr_sam_ref.optim.likelihood import Categorical, Likelihood
from tests.optim._ranks import run_on_ranks
from tests.optim._training import same

WEIGHT = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
CLOSED = LLQRConfig.sampled(structure="diagonal", probes=4, curvature_memory=1.0)
INNER = LLQRConfig.published(steps=3, lr=0.05, ema=0.0)
CONFIGS: dict[str, LLQRConfig] = {
    "closed form": CLOSED,
    "bases": LLQRConfig(probes=4),
    "one probe": CLOSED.replace(probes=1),
    "true labels": CLOSED.replace(probe_vector="gradient"),
    "summed": CLOSED.replace(reduction="sum"),
    "fisher": INNER.replace(divergence="fisher", probe_vector="sampled", probes=4),
    "gauss-newton": INNER.replace(divergence="gauss-newton"),
    "newton": INNER.replace(divergence="newton", reduction="sum"),
}


def flattened(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z.flatten(0, 1), y.flatten())


LOSSES: dict[str, tuple[Callable[..., Tensor], Likelihood | None]] = {
    "ignored": (nn.CrossEntropyLoss(), None),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), None),
    "weighted and smoothed": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.3),
        Categorical(weight=WEIGHT, label_smoothing=0.3),
    ),
    "sentences": (flattened, Categorical()),
}
# Of eight labels, four on each rank, in micro-batches of two.
COUNTED = {"one and four": [2, 4, 5, 6, 7], "none and three": [5, 6, 7], "two and none": [0, 3]}


class Sentences(nn.Module):
    """Logits (n, 3, 3): as many words as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 2), nn.Linear(2, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        z: Tensor = self.head(self.embedding(tokens))
        return z


def problem(loss: str, lie: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, inputs, labels and uniforms."""
    torch.manual_seed(0)
    y = torch.full((8,), -100)
    y[COUNTED[lie]] = (torch.arange(8) % 3)[COUNTED[lie]]
    if loss == "sentences":
        labels = (torch.arange(24).view(8, 3) % 3).where((y >= 0).unsqueeze(1), -100)
        return Sentences().double(), torch.randint(5, (8, 3)), labels, torch.rand(8, 3).double()
    return nn.Linear(4, 3).double(), torch.randn(8, 4).double(), y, torch.rand(8).double()


def optimizer(model: nn.Module, loss: str, config: LLQRConfig) -> LLQR:
    loss_fn, likelihood = LOSSES[loss]
    return LLQR(torch.optim.SGD(model.parameters(), lr=0.1), model, loss_fn, config, likelihood=likelihood)


def learned(
    loss: str, lie: str, config: LLQRConfig, share: Callable[[Tensor], Tensor], wrap: Callable[..., nn.Module]
) -> list[Tensor]:
    """What two refits learn on this rank's share."""
    model, x, y, u = problem(loss, lie)
    opt = optimizer(wrap(model), loss, config)
    uniforms = {"uniforms": share(u)} if config.probe_vector == "sampled" else {}
    for _ in range(2):
        opt.refit(share(x), share(y), **uniforms)
    found = [t for kept in opt.own.values() for t in kept.values() if isinstance(t, Tensor)]
    return [t.full_tensor() if hasattr(t, "full_tensor") else t.clone() for t in found]


def whole(tensor: Tensor) -> Tensor:
    return tensor


def interleaved(tensor: Tensor) -> Tensor:
    """Micro-batch j of a sharded model is made of the j-th micro-batches of all ranks."""
    return tensor.view(2, 2, 2, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


SHARDED = {name: CONFIGS[name].replace(probes=2) for name in ("closed form", "true labels", "summed")}
PAIRS = [
    *(("ignored", lie, config) for lie in COUNTED for config in CONFIGS),
    *((loss, lie, "closed form") for loss in LOSSES for lie in COUNTED if loss != "ignored"),
    *((loss, "one and four", config) for loss in LOSSES for config in ("true labels", "gauss-newton", "fisher")),
]  # fmt: skip
SHARDED_PAIRS = [
    (loss, lie, config)
    for loss in ("ignored", "weighted and smoothed", "sentences")
    for lie in COUNTED
    for config in SHARDED
]
WRAPPED: dict[str, Callable[..., nn.Module]] = {"replicated": DistributedDataParallel, "sharded": sharded}


def spoiled(x: Tensor, y: Tensor, how: str) -> tuple[Tensor, Tensor]:
    if how == "another width":
        return x[:, :3], y
    if how == "no such class":
        return x, y + 7
    x = x.clone()
    x[1, 2] = {"NaN": torch.nan, "infinite": torch.inf}[how]
    return x, y


SPOILED = ("NaN", "infinite", "another width", "no such class")


def errors(rank: int, config: LLQRConfig, wrap: Callable[..., nn.Module], bad: int, how: str) -> list[Any]:
    """The message of a refit that one rank's batch spoils, whether U stayed, and what the next refit learns."""
    model, x, y, u = problem("ignored", "one and four")
    y = torch.arange(8) % 3
    x, y, u = (t.chunk(2)[rank] for t in (x, y, u))
    opt = optimizer(wrap(model), "ignored", config)
    message = "none"
    try:
        opt.refit(*(spoiled(x, y, how) if rank == bad else (x, y)))
    except ValueError as error:
        message = str(error)
    due = opt.refit_due
    opt.refit(x, y)
    local = [t for kept in opt.own.values() for t in kept.values() if isinstance(t, Tensor)]
    return [message, due, all(bool(t.isfinite().all()) for t in local)]


SPOILS = [
    *(("replicated", config, bad, "NaN") for config in CONFIGS for bad in (0, 1)),
    *(("replicated", "closed form", 1, how) for how in SPOILED[1:]),
    *(("replicated", "fisher", 1, how) for how in SPOILED[1:]),
    *(("sharded", config, 1, how) for config in ("closed form", "true labels") for how in SPOILED[:2]),
]


def on_a_rank(rank: int) -> dict[str, Any]:
    """Everything that needs two processes, in one start of them."""

    def half(tensor: Tensor) -> Tensor:
        return tensor.chunk(2)[rank]

    found: dict[str, Any] = {}
    for loss, lie, config in PAIRS:
        found[f"{loss}, {lie}, {config}"] = learned(loss, lie, CONFIGS[config], half, DistributedDataParallel)
    for loss, lie, config in SHARDED_PAIRS:
        found[f"sharded, {loss}, {lie}, {config}"] = learned(loss, lie, SHARDED[config], half, sharded)
    for wrap, config, bad, how in SPOILS:
        settings = SHARDED[config] if wrap == "sharded" else CONFIGS[config]
        found[f"{wrap}, {config}, {bad}, {how}"] = errors(rank, settings, WRAPPED[wrap], bad, how)
    return found


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_on_ranks(on_a_rank)


@pytest.mark.parametrize(("loss", "lie", "config"), PAIRS)
def test_two_ranks_count_as_one(loss: str, lie: str, config: str, two: list[dict[str, Any]]) -> None:
    expected = learned(loss, lie, CONFIGS[config], whole, lambda model: model)
    ours, twin = (results[f"{loss}, {lie}, {config}"] for results in two)
    assert same(ours, twin)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("loss", "lie", "config"), SHARDED_PAIRS)
def test_sharded_ranks_count_as_one(loss: str, lie: str, config: str, two: list[dict[str, Any]]) -> None:
    expected = learned(loss, lie, SHARDED[config], interleaved, lambda model: model)
    for results in two:
        for a, b in zip(results[f"sharded, {loss}, {lie}, {config}"], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("wrap", "config", "bad", "how"), SPOILS)
def test_a_batch_that_is_bad_on_one_rank_raises_on_all(
    wrap: str, config: str, bad: int, how: str, two: list[dict[str, Any]]
) -> None:
    own = {
        "NaN": "NaN|not finite",
        "infinite": "NaN|not finite",
        "another width": "inputs do not fit the model",
    }
    other = rf"failed on ranks \[{bad}\]; their own errors say why"
    for rank, results in enumerate(two):
        message, due, finite = results[f"{wrap}, {config}, {bad}, {how}"]
        says = own.get(how, "loss_fn fails on the probe batch")
        if wrap == "sharded":  # a sum over the ranks: either may see it first
            says = f"{says}|{other}"
        elif rank != bad:
            says = other
        assert re.search(says, message), message
        assert due
        assert finite  # of the refit that came after
