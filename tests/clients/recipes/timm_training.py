"""timm: its factories, schedule, clipping and moving average around the two passes."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, frozen_batch_stats


def train(model: nn.Module, batches: list[Any], epochs: int) -> ModelEmaV3:
    base = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)  # none on biases and norms
    opt = SAM(LLQR(base, model), rho=0.05)
    schedule, _ = create_scheduler_v2(
        opt, "cosine", epochs, updates_per_epoch=len(batches), step_on_epochs=False
    )
    average = ModelEmaV3(model, decay=0.9)
    for update, (inputs, targets) in enumerate(epochs * batches, start=1):
        opt.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        with opt.perturbed(), frozen_batch_stats(model):
            opt.zero_grad()
            cross_entropy(model(inputs), targets).backward()
        dispatch_clip_grad(model.parameters(), 1.0, mode="norm")
        opt.step()
        average.update(model)
        schedule.step_update(update)
    return average
