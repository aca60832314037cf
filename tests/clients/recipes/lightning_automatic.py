"""Lightning, automatic optimization: ``step(closure)`` makes both passes."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llqr_sam_ref import LLQR, SAM


class Classifier(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        base = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        opt = SAM(LLQR(base, self.net), rho=0.05, model=self.net)
        steps = int(self.trainer.estimated_stepping_batches)
        decay = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": decay, "interval": "step"}}
