"""Lightning, manual optimization: accumulation, clipping and a GradScaler around the two passes."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM, frozen_batch_stats


class Classifier(lightning.LightningModule):
    def __init__(self, net: nn.Module, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.accumulate = net, accumulate
        self.kept: list[Any] = []  # the micro-batches of this step

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.kept.append(batch)
        if len(self.kept) < self.accumulate:
            return
        opt: Any = self.optimizers()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.gradient(opt)
        with opt.perturbed(scaler), frozen_batch_stats(self.net):
            self.gradient(opt)
        opt.step()
        self.kept.clear()

    def gradient(self, opt: Any) -> None:
        opt.zero_grad()
        for inputs, targets in self.kept:
            self.manual_backward(cross_entropy(self.net(inputs), targets) / self.accumulate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.clip_gradients(optimizer, 1.0, "norm")  # unscaled by now

    def configure_optimizers(self) -> torch.optim.Optimizer:
        base = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        return SAM(LLQR(base, self.net), rho=0.05)
