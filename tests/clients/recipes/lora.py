"""PEFT: only the adapters and the new head are perturbed, preconditioned and trained."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from llqr_sam_ref import LLQR, SAM


def adapted(model: nn.Module, layers: list[str], head: str) -> tuple[PeftModel, SAM]:
    config = LoraConfig(r=4, target_modules=layers, modules_to_save=[head])
    with_adapters = get_peft_model(model, config)
    trained = [p for p in with_adapters.parameters() if p.requires_grad]
    base = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    return with_adapters, SAM(LLQR(base, with_adapters), rho=0.05)
