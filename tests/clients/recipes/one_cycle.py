"""Schedulers of torch: around the outermost optimizer, one step of the schedule after each of its own."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from llqr_sam_ref import SAM, frozen_batch_stats


def train(model: nn.Module, opt: SAM, batches: list[Any]) -> None:
    cycle = OneCycleLR(
        opt, max_lr=0.02, total_steps=len(batches)
    )  # SGD's momentum, or the first beta of Adam
    for inputs, targets in batches:
        opt.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        with opt.perturbed(), frozen_batch_stats(model):
            opt.zero_grad()
            cross_entropy(model(inputs), targets).backward()
        opt.step()
        cycle.step()
