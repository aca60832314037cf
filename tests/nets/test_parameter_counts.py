"""The architectures are the published ones: their parameters add up to the published numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from llqr_sam_ref.nets import (
    EncoderDecoder,
    gpt2_small,
    mlp,
    resnet18,
    resnet34,
    resnet50,
    vit_tiny,
    wide_resnet28_10,
)

# Counts as reported for the reference implementations of each family, in full.
PUBLISHED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MLP 784-512-512-10": (lambda: mlp((784, 512, 512, 10)), 669_706),
    "ResNet-18, ImageNet": (lambda: resnet18(1000, stem="imagenet"), 11_689_512),
    "ResNet-34, ImageNet": (lambda: resnet34(1000, stem="imagenet"), 21_797_672),
    "ResNet-50, ImageNet": (lambda: resnet50(1000, stem="imagenet"), 25_557_032),
    "ResNet-18, CIFAR-10": (lambda: resnet18(10), 11_173_962),
    "ResNet-34, CIFAR-10": (lambda: resnet34(10), 21_282_122),
    "ResNet-50, CIFAR-10": (lambda: resnet50(10), 23_520_842),
    "WRN-28-10, CIFAR-10": (lambda: wide_resnet28_10(10), 36_479_194),
    "WRN-28-10, CIFAR-100": (lambda: wide_resnet28_10(100), 36_536_884),
    "ViT-Ti/16, ImageNet": (lambda: vit_tiny(1000, image_size=224, patch_size=16), 5_717_416),
    "GPT-2 small": (lambda: gpt2_small(50257), 124_439_808),
    "Transformer, IWSLT14 de-en (8848 and 6632 tokens)": (lambda: EncoderDecoder(8848, 6632), 39_469_056),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name: str) -> None:
    make, expected = PUBLISHED[name]
    with torch.device("meta"):
        model = make()
    assert sum(p.numel() for p in model.parameters()) == expected


def test_transformer_base_has_the_size_of_its_paper() -> None:
    """65 million, as the paper rounds, with one embedding shared by both languages; ours keeps two."""
    with torch.device("meta"):
        model = EncoderDecoder(37_000, 37_000, 512, 6, 8, 2048)
    shared = sum(p.numel() for p in model.parameters()) - model.source.weight.numel()
    assert abs(shared - 65e6) < 0.03 * 65e6
