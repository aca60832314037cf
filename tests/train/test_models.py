"""Models by name fit their data; any other by package:function."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llqr_sam_ref.errors import UserError
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


# Mistakes of a user's own model stay what they are.

FOREIGN = """
import torch

def broken(num_classes):
    return len(5)

def picky(num_classes, *, depth):
    return torch.nn.Linear(4, num_classes)

class Half(torch.nn.Module):
    def __init__(self, num_classes, size: int = 3):
        super().__init__()
        if size % 2:
            raise ValueError("an odd size")
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "foreign_models.py").write_text(FOREIGN)
    (tmp_path / "foreign_needy.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "foreign_wrong.py").write_text("x = object().nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "foreign_models"


def test_errors_inside_a_foreign_model_are_its_own(foreign: str) -> None:
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        build_model(ModelConfig(f"{foreign}:broken"), IMAGES)
    with pytest.raises(ValueError, match="^an odd size$") as caught:
        build_model(ModelConfig(f"{foreign}:Half"), IMAGES)
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has") as missing:
        build_model(ModelConfig("foreign_needy:model"), IMAGES)
    assert not isinstance(missing.value, UserError)
    with pytest.raises(AttributeError, match="nothing"):
        build_model(ModelConfig("foreign_wrong:model"), IMAGES)


@pytest.mark.parametrize(
    ("model", "arguments", "word"),
    [
        ("foreign_models:picky", (), "does not fit this data set.*depth"),
        ("foreign_models:picky", ("width=3",), "did you mean 'depth'"),
        ("foreign_models:brokn", (), "did you mean 'broken'"),
        ("foreign_modls:broken", (), "cannot be found: No module named 'foreign_modls'"),
        (":broken", (), "write package:function"),
        ("builtins:print", (), "made a NoneType, not a torch module"),
        ("builtins:iter", (), "does not say which arguments it takes"),
        ("resnet", ("width=a",), "width='a' is not allowed"),
        ("vit", ("width=a",), "model='vit' cannot be made with model_args=.*pass values of the types"),
    ],
)
def test_mistakes_in_the_settings_are_the_users(
    foreign: str, model: str, arguments: tuple[str, ...], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        build_model(ModelConfig(model, arguments), IMAGES)
