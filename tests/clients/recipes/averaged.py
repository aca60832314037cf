"""torch.optim.swa_utils: average the weights after a while, and estimate the batch statistics of the average."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from llqr_sam_ref import SAM, frozen_batch_stats


def train(model: nn.Module, opt: SAM, loader: Any, epochs: int, start: int) -> AveragedModel:
    average = AveragedModel(model)
    constant = SWALR(opt, swa_lr=0.005, anneal_epochs=2)
    for epoch in range(epochs):
        for inputs, targets in loader:
            opt.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            with opt.perturbed(), frozen_batch_stats(model):
                opt.zero_grad()
                cross_entropy(model(inputs), targets).backward()
            opt.step()
        if epoch >= start:
            average.update_parameters(model)
            constant.step()
    update_bn(loader, average)
    return average
