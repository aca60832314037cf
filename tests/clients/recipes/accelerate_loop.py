"""Accelerate: the second pass goes over all micro-batches, when the gradients are synchronized."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import SAM, frozen_batch_stats


def train(accelerator: Accelerator, model: nn.Module, opt: SAM, decay: Any, loader: Any) -> None:
    """One epoch with ``opt = SAM(LLQR(base, model))``, or with a SAM over any other base."""
    model, optimizer, decay, loader = accelerator.prepare(model, opt, decay, loader)
    kept: list[Any] = []  # the micro-batches of this step
    for batch in loader:
        kept.append(batch)
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(batch[0]), batch[1]))
            if accelerator.sync_gradients:
                if getattr(opt, "refit_due", False):  # only if U learns from probe batches
                    opt.refit(*batch)
                with opt.perturbed(accelerator.scaler), frozen_batch_stats(model):
                    opt.zero_grad()
                    for inputs, targets in kept:
                        accelerator.backward(cross_entropy(model(inputs), targets))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                kept.clear()
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
