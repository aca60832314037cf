"""Models by name fit their data; any other by package:function."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from llqr_sam_ref.nets import ResNet, VisionTransformer
from llqr_sam_ref.train.config import ModelConfig
from llqr_sam_ref.train.models import MODELS, build_model

IMAGES = {"num_classes": 7, "channels": 1, "image_size": 8, "features": 64}
TOKENS = {"vocabulary": 11, "context": 6}
PAIRS = {"vocabulary": 11, "features": 64}
TRANSLATION = {"source_vocabulary": 11, "target_vocabulary": 13}


@pytest.mark.parametrize("name", MODELS)
def test_every_name_fits_the_data_it_is_for(name: str) -> None:
    shape: dict[str, Any] = {
        "decoder": TOKENS,
        "gpt2-small": TOKENS,
        "encoder-decoder": TRANSLATION,
        "two-towers": PAIRS,
    }.get(name, IMAGES)
    with torch.device("meta"):
        model = build_model(ModelConfig(name), shape)
    assert isinstance(model, nn.Module)


def test_arguments_come_before_what_the_data_offer() -> None:
    model = build_model(
        ModelConfig("resnet", ("width=4", "depths=1,2", "norm=group", "num_classes=3")), IMAGES
    )
    assert isinstance(model, ResNet)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert len(model.stages) == 2
    single = build_model(ModelConfig("mlp", ("hidden=5", "activation=tanh")), IMAGES)
    assert single(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    vit = build_model(ModelConfig("vit", ("width=8", "heads=2", "depth=1")), IMAGES)
    assert isinstance(vit, VisionTransformer)
    assert vit(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_any_function_of_any_package() -> None:
    module = types.ModuleType("elsewhere")
    module.make = lambda num_classes=2, **more: nn.Linear(4, num_classes)  # type: ignore[attr-defined]
    module.wrong = lambda: 3  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    sys.modules["elsewhere"] = module
    try:
        model = build_model(ModelConfig("elsewhere:make", ("anything=1",)), IMAGES)
        assert isinstance(model, nn.Linear)
        assert model.out_features == 7
        for name, word in (
            ("wrong", "not a torch module"),
            ("number", "no function"),
            ("absent", "cannot be found"),
        ):
            with pytest.raises(ValueError, match=word):
                build_model(ModelConfig(f"elsewhere:{name}"), IMAGES)
    finally:
        del sys.modules["elsewhere"]


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("resnet81", (), "did you mean 'resnet18'"),
        ("resnet18", ("widht=8",), "did you mean 'width'"),
        ("resnet18", ("norm=layer",), "norm='layer'"),
        ("decoder", (), "does not fit"),
        ("no_such_package:resnet", (), "cannot be found"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build_model(ModelConfig(name, arguments), IMAGES)
