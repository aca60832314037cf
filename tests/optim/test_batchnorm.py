"""frozen_batch_stats: the second pass leaves no trace in the running statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.optim import frozen_batch_stats

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (8, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (8, 3, 2, 2)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(3), (8, 3, 2, 2, 2)),
    "cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), (8, 3)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, track_running_stats=True), (8, 3, 4, 4)),
    "nested": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3))), (8, 3)),
}
layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@layers
def test_running_statistics_stay_bit_for_bit(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make()
    model(torch.randn(shape))
    before, addresses = buffers(model), [b.data_ptr() for b in model.buffers()]
    x = 3 + 2 * torch.randn(shape)
    with frozen_batch_stats(model):
        inside = model(x)
        model(x * 100)
    assert same(buffers(model), before)
    assert [b.data_ptr() for b in model.buffers()] == addresses
    torch.testing.assert_close(model(x), inside)  # it normalized by the batch, as in training
    assert not same(buffers(model), before)  # and learns again afterwards


@layers
def test_nested_and_twice(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = make()
    model(torch.randn(shape))
    before = buffers(model)
    for _ in range(2):
        with frozen_batch_stats(model):
            model(torch.randn(shape))
            with frozen_batch_stats(model):
                model(torch.randn(shape))
            model(torch.randn(shape))
    assert same(buffers(model), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_after_an_exception(error: type[BaseException]) -> None:
    model = nn.BatchNorm1d(3)
    before = buffers(model)

    def interrupted() -> None:
        with frozen_batch_stats(model):
            model(torch.full((4, 3), float("nan")))
            raise error

    with pytest.raises(error):
        interrupted()
    assert same(buffers(model), before)  # a NaN batch leaves no trace either


def test_an_evaluating_layer_still_uses_its_statistics() -> None:
    model = nn.BatchNorm1d(3)
    model(torch.randn(8, 3))
    model.eval()
    x = torch.randn(8, 3)
    expected = model(x)
    with frozen_batch_stats(model):
        assert torch.equal(model(x), expected)


def test_backward_may_come_after_the_block() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(8, 3)
    with frozen_batch_stats(model):
        loss = model(x).square().sum() + model(x).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_reaches_through_a_compiled_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(8, 3)
    compiled(x)
    before = buffers(model)
    with frozen_batch_stats(compiled):  # type: ignore[arg-type]  # torch types a compiled module as a function
        compiled(x + 1)
    assert same(buffers(model), before)


def test_reaches_any_layer_that_keeps_running_statistics() -> None:
    class Homemade(nn.Module):
        running_mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.running_mean.lerp_(x.mean(0), 0.1)
            return x - x.mean(0)

    model = Homemade()
    with frozen_batch_stats(model):
        model(torch.ones(2, 3))
    assert not model.running_mean.any()


def test_a_lazy_layer_without_statistics_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d())
    with pytest.raises(RuntimeError, match=r"1\.running_mean.*forward pass"), frozen_batch_stats(model):
        pass
