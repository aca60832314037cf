"""The Trainer of transformers: ``training_step`` makes the second pass over all micro-batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from llqr_sam_ref import frozen_batch_stats


class SAMTrainer(Trainer):
    """Give it ``optimizers=(SAM(LLQR(base, model)), None)``, or a SAM over any base."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        opt = self.optimizer.optimizer  # inside the wrapper of Accelerate
        self.kept = [*getattr(self, "kept", []), inputs]  # the micro-batches of this step
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        if self.accelerator.sync_gradients:
            if getattr(opt, "refit_due", False):  # only if U learns from probe batches
                opt.refit({k: v for k, v in inputs.items() if k != "labels"}, inputs["labels"])
            with opt.perturbed(self.accelerator.scaler), frozen_batch_stats(model):
                opt.zero_grad()
                for batch in self.kept:
                    super().training_step(model, dict(batch), num_items_in_batch)
            self.kept = []
        return loss
