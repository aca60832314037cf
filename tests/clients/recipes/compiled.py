"""torch.compile: the model, and what an optimizer does between two backward passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, frozen_batch_stats


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], backend: str = "inductor") -> SAM:
    fast = torch.compile(model, backend=backend)
    rate = torch.tensor(0.01)  # a tensor: a new value compiles nothing anew
    base = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    opt = SAM(LLQR(base, model), rho=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, len(batches))
    step = torch.compile(opt.step, backend=backend)
    for inputs, targets in batches:
        opt.zero_grad()
        cross_entropy(fast(inputs), targets).backward()
        with opt.perturbed(), frozen_batch_stats(model):
            opt.zero_grad()
            cross_entropy(fast(inputs), targets).backward()
        step()
        decay.step()
    return opt
