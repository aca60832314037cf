"""Micro-batches that cannot share operations are found out once; memory that runs out is no such finding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR
from llqr_sam_ref.optim.likelihood import Categorical, infer_likelihood
from llqr_sam_ref.optim.probes import gradients

CONFIGS: dict[str, LLQRConfig] = {
    "sampled": LLQRConfig.sampled(structure="diagonal", probes=2, curvature_memory=1.0),
    "true labels": LLQRConfig(structure="diagonal", probes=2, probe_vector="gradient"),
    "bases": LLQRConfig(probes=4),
}
ALL: dict[str, LLQRConfig] = {
    **CONFIGS,
    "fisher": LLQRConfig.published(steps=2, divergence="fisher", probe_vector="sampled", probes=2),
    "newton": LLQRConfig.published(steps=2, divergence="newton"),
}


class Square(torch.autograd.Function):
    """An operation of somebody's own, without a rule for batching."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return 2 * h * slope


def branching(h: Tensor) -> Tensor:
    return h * h if float(h.detach().sum()) < 1e9 else h


def through_a_list(h: Tensor) -> Tensor:
    assert isinstance(h.detach().tolist(), list)
    return h * h


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "an operation of one's own": Square.apply,  # type: ignore[no-untyped-call]
    "a branch on a value": branching,
    "a value as a list": through_a_list,
}


class Net(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Any] = torch.square) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.operation = nn.Linear(4, 5), nn.Linear(5, 3), operation
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.operation(self.first(x)))
        return z


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 4).double(), torch.arange(8) % 3


def optimizer(
    module: nn.Module, config: LLQRConfig, loss_fn: Any = functional.cross_entropy, **options: Any
) -> LLQR:
    return LLQR(torch.optim.SGD(module.parameters(), lr=0.1), module, loss_fn, config, **options)


def learned(opt: LLQR) -> list[Tensor]:
    return [t.clone() for kept in opt.own.values() for t in kept.values() if isinstance(t, Tensor)]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that micro-batches are tried together."""
    together, seen = torch.func.vmap, []

    def counted(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        return together(*arguments, **options)

    monkeypatch.setattr(gradients, "vmap", counted)
    return seen


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_be_batched_is_tried_once_and_right(name: str, config: str, tries: list[int]) -> None:
    x, y = data()
    plain, opt = optimizer(Net(), CONFIGS[config]), optimizer(Net(OPERATIONS[name]), CONFIGS[config])
    for refit in range(3):
        opt.refit(x, y)
        assert len(tries) == 1, refit
    tries.clear()
    for _ in range(3):
        plain.refit(x, y)
    assert len(tries) == 3
    for ours, theirs in zip(learned(opt), learned(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_a_batch_that_does_not_fit_says_nothing_of_the_model(tries: list[int]) -> None:
    module, (x, y) = Net(), data()
    known = gradients.Batching()
    for inputs, labels in ((x[:, :3], y), (x, y + 3), (x, y[:4].repeat(4)[:12])):
        with pytest.raises(ValueError, match="no gradients on the probe batch"):
            gradients.batch_gradients(
                module, functional.cross_entropy, inputs, labels, probes=2, batching=known
            )
    assert not known.refused
    gradients.batch_gradients(module, functional.cross_entropy, x, y, probes=2, batching=known)
    assert len(tries) == 4


MEMORY: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "MPS": lambda: RuntimeError(
        "MPS backend out of memory (MPS allocated: 1.00 GB, other allocations: 1.00 GB)."
    ),
    "CPU": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "cuBLAS": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "Python": MemoryError,
}


class Runs:
    """An operation that runs out of memory at its n-th call; -1 for never."""

    def __init__(self, make: Callable[[], Exception]) -> None:
        self.make, self.calls, self.last = make, 0, -1

    def __call__(self, h: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.last:
            raise self.make()
        return h * h


@pytest.mark.parametrize(
    ("kind", "config", "place"),
    [
        *((kind, "sampled", "the model") for kind in MEMORY),
        *(("CUDA", config, "the loss") for config in ALL),
        *(("CPU", config, "the model") for config in ALL if config != "sampled"),
    ],
)
def test_memory_that_runs_out_anywhere_is_raised_as_it_is(
    kind: str, config: str, place: str, tries: list[int]
) -> None:
    x, y = data()
    runs = Runs(MEMORY[kind])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        runs(z.detach())
        return functional.cross_entropy(z, y)

    def make() -> LLQR:
        inside = place == "the model"
        module = Net(runs if inside else torch.square)
        return optimizer(
            module, ALL[config], functional.cross_entropy if inside else loss, likelihood=Categorical()
        )

    expected = make()
    expected.refit(x, y)
    calls = runs.calls
    assert calls
    runs.calls = 0
    quadratic = make()
    quadratic.quadratic_gain(x, y)
    gain_calls = runs.calls
    for last in range(1, calls + 1):
        opt = make()
        runs.calls, runs.last = 0, last
        with pytest.raises(type(MEMORY[kind]())) as caught:
            opt.refit(x, y)
        assert str(caught.value) == str(MEMORY[kind]())
        assert opt.refit_due
        runs.last = -1
        tries.clear()
        opt.refit(x, y)  # there is room again: nothing was concluded
        assert len(tries) == (ALL[config].probes > 1)
        for ours, theirs in zip(learned(opt), learned(expected), strict=True):
            assert torch.equal(ours, theirs)
    for last in range(1, gain_calls + 1):
        opt = make()
        runs.calls, runs.last = 0, last
        with pytest.raises(type(MEMORY[kind]())):
            opt.quadratic_gain(x, y)


def test_other_errors_of_the_model_are_explained() -> None:
    x, y = data()
    runs = Runs(lambda: RuntimeError("the sky fell"))
    opt = optimizer(Net(runs), CONFIGS["sampled"])
    runs.last = 1
    with pytest.raises(ValueError, match="inputs do not fit the model: the sky fell"):
        opt.refit(x, y)


@dataclass
class Unhashable:
    scale: float = 1.0

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return self.scale * functional.cross_entropy(z, y)


class Listed(list[float]):
    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return self[0] * functional.cross_entropy(z, y)


class Equal(nn.CrossEntropyLoss):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("loss_fn", [Unhashable(), Listed([1.0])], ids=lambda loss: type(loss).__name__)
def test_losses_need_no_hash(loss_fn: Any, config: str) -> None:
    x, y = data()
    with pytest.raises(TypeError):
        hash(loss_fn)
    with pytest.raises(ValueError, match="is not a likelihood known here"):
        infer_likelihood(loss_fn)
    found = []
    for loss in (loss_fn, functional.cross_entropy):
        opt = optimizer(Net(), ALL[config], loss, likelihood=Categorical())
        opt.refit(x, y)
        copied = copy.deepcopy(opt)
        copied.refit(x, y)
        found.append([*learned(opt), *learned(copied)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_a_loss_module_needs_no_hash_of_its_own() -> None:
    x, y = data()
    found = []
    for loss in (Equal(), nn.CrossEntropyLoss()):
        opt = optimizer(Net(), CONFIGS["sampled"], loss, likelihood=Categorical())
        opt.refit(x, y)
        found.append(learned(opt))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
