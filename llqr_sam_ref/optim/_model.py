"""The model and the loss that a learned preconditioner belongs to: found inside wrappers, evaluated, copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from llqr_sam_ref.optim._random import random_state, set_random_state
from llqr_sam_ref.optim.likelihood import LossFn


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and autocast is off; at the end all is as it was.

    Args:
        model: whose flags are restored, module by module, as are the global random streams of its devices.

    Yields:
        Nothing.
    """
    flags = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters()}
    streams = random_state(devices)
    try:
        with ExitStack() as off:
            for kind in {device.type for device in devices}:
                off.enter_context(torch.autocast(kind, enabled=False))
            model.eval()
            yield
    finally:
        for module, training in flags:
            module.training = training
        set_random_state(streams)


class CopiedLoss:
    """A loss on its way into a copy or a pickle, which says by name what cannot be pickled."""

    def __init__(self, loss_fn: LossFn) -> None:
        self.loss_fn = loss_fn

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedLoss:
        return CopiedLoss(copy.deepcopy(self.loss_fn, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.loss_fn)
        except Exception as error:
            raise pickle.PicklingError(
                f"loss_fn={self.loss_fn!r} cannot be pickled ({error}); pass a module, or a function defined at "
                "the top level of a file."
            ) from error
        return CopiedLoss, (self.loss_fn,)
