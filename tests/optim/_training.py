"""Small helpers of the optimizer tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def backward(loss: Tensor) -> Tensor:
    """``loss.backward()``, which returns the loss."""
    torch.autograd.backward(loss)
    return loss


def weights(model: nn.Module) -> list[Tensor]:
    """A copy of all parameters."""
    return [p.detach().clone() for p in model.parameters()]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Equal bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
