"""Make the clients importable beside a CPU build of torch, and hold them to our warnings, not to their own."""

from __future__ import annotations

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Let other packages' own deprecations pass; a warning of ours is still an error."""
    for module in (
        "accelerate",
        "lightning",
        "peft",
        "timm",
        "torch.jit",
        "torchmetrics",
        "torchvision",
        "transformers",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")


# timm, torchmetrics and transformers import torchvision wherever it is installed. Its wheels on PyPI are built for
# CUDA: beside a CPU build of torch their operators do not load, and the import ends where the first of them gets a
# shape function. Nothing here calls an operator, so their schemas are enough.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
