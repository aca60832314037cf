"""What an optimizer has to know of a GradScaler."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch import Tensor
from torch.optim import Optimizer


def loss_scale_of(scaler: torch.amp.GradScaler | None, optimizer: Optimizer) -> Tensor | float:
    """What the loss was multiplied by before the backward pass, without waiting for the device.

    Args:
        scaler: the GradScaler that scaled it, if any.
        optimizer: whose gradients are about to be read.

    Returns:
        The scale, 1 without a scaler or with one that is disabled.

    Raises:
        RuntimeError: the gradients were unscaled already; the scaler would then leave the next ones scaled.
    """
    if scaler is None or not scaler.is_enabled():
        return 1.0
    stage = scaler._per_optimizer_states.get(id(optimizer), {}).get("stage")
    if stage is not None and stage.name != "READY":
        raise RuntimeError(
            "scaler.unscale_(opt) was called before perturbed(): the gradients of the second pass would stay "
            "scaled. Call it after the block."
        )
    scale = scaler._get_scale_async()
    return 1.0 if scale is None else scale


def called_by_grad_scaler() -> bool:
    """Whether an enabled GradScaler is on the call stack: it hands a closure on without a word."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step":
            caller = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
                return True
        frame = frame.f_back
    return False
