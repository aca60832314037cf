"""Batch normalization and the second pass: running statistics must see every batch once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_batch_stats(model: nn.Module) -> Iterator[None]:
    """Leave a model's running statistics as they are, whatever forward passes happen inside.

    Layers in training mode still normalize by the batch; only what they remember is put back at the end, bit
    for bit and in place, also after an exception and also ``num_batches_tracked``. Nothing is set on the
    layers (no momentum to forget, no recompilation of a compiled model), so it may be nested, and it reaches
    through ``DistributedDataParallel`` and ``torch.compile``. Every layer counts that keeps a buffer called
    running_mean, running_var or num_batches_tracked. Without it the second pass of SAM would mix statistics
    of the perturbed weights into the average.

    Args:
        model: the module whose norm layers are frozen.

    Yields:
        Nothing.

    Raises:
        RuntimeError: a lazy layer has no statistics yet.

    Source: Foret et al. 2021 keep the statistics of the first pass (their published code).
    """
    buffers = _running_statistics(model)
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        # Through .data: a graph that is still alive may hold a buffer, and its values do not enter backward.
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.data.copy_(value)


def _running_statistics(model: nn.Module) -> list[Tensor]:
    buffers = []
    for path, module in model.named_modules():
        for name in RUNNING:
            buffer = module._buffers.get(name)
            if buffer is None:
                continue
            if is_lazy(buffer):
                raise RuntimeError(
                    f"{path}.{name} is not initialized; run one forward pass before frozen_batch_stats()."
                )
            buffers.append(buffer)
    return buffers
