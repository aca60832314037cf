"""From a name to a model that fits a data set; any other by package:function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from llqr_sam_ref import nets
from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.nets.resnet import BasicBlock
from llqr_sam_ref.train.config import ModelConfig
from llqr_sam_ref.train.settings import parse


def mlp(
    num_classes: int,
    features: int,
    hidden: int | Sequence[int] = (64, 64),
    activation: str = "relu",
    bias: bool = True,
) -> nn.Module:
    """An MLP for images: ``hidden`` lists the units of its inner layers."""
    inner = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    return nets.mlp((features, *inner, num_classes), activation, bias=bias)


def resnet(num_classes: int = 10, depths: int | Sequence[int] = (1, 1, 1), **arguments: Any) -> nn.Module:
    """A ResNet of basic blocks with ``depths`` blocks in its stages; (1, 1, 1) is ResNet-8."""
    stages = (depths,) if isinstance(depths, int) else tuple(depths)
    return nets.ResNet(BasicBlock, stages, num_classes, **arguments)


def two_towers(
    vocabulary: int, features: int, hidden: int = 128, width: int = 64, words: int = 32
) -> nn.Module:
    """An MLP beside a bag of words; ``width`` is that of the common space."""
    return nets.two_towers(vocabulary, (features, hidden, width), words=words)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet": resnet,
    "resnet18": nets.resnet18,
    "resnet34": nets.resnet34,
    "resnet50": nets.resnet50,
    "wide-resnet": partial(nets.WideResNet, depth=16, widen=4),
    "wide-resnet28-10": nets.wide_resnet28_10,
    "vit": partial(nets.VisionTransformer, width=64, depth=4, heads=4),
    "vit-ti": nets.vit_tiny,
    "decoder": nets.Decoder,
    "gpt2-small": nets.gpt2_small,
    "encoder-decoder": nets.EncoderDecoder,
    "two-towers": two_towers,
}


def build_model(config: ModelConfig, shape: Mapping[str, Any]) -> nn.Module:
    """Make a model for a data set.

    Args:
        config: its name and arguments.
        shape: what the data set says of itself; what the model takes of it is passed on, arguments come first.

    Returns:
        The model, freshly initialized.

    Raises:
        ValueError: the name, package, function or an argument is unknown, or the model does not fit.
    """
    make = _maker(config.model)
    given = parse("model_args", config.model_args)
    known, takes_all = _arguments(make)
    for name in given:
        if name not in known and not takes_all:
            raise ValueError(unknown_name("model_args", name, known))
    fitting = {name: value for name, value in shape.items() if name in known}
    if takes_all and "num_classes" in shape:
        fitting["num_classes"] = shape["num_classes"]
    try:
        model = make(**fitting | given)
    except TypeError as error:
        raise ValueError(
            f"model={config.model!r} does not fit this data set, which offers {dict(shape)}: {error}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={config.model!r} made a {type(model).__name__}, not a torch module.")
    return model


def _maker(name: str) -> Callable[..., Any]:
    if ":" not in name:
        if name not in MODELS:
            raise ValueError(unknown_name("model", name, MODELS) + " Or give package:function.")
        return MODELS[name]
    package, _, function = name.partition(":")
    try:
        found = getattr(import_module(package), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model={name!r} cannot be found: {error}; install the package or correct it."
        ) from None
    if not callable(found):
        raise ValueError(f"model={name!r} is no function; name one that returns a module.")
    return found  # type: ignore[no-any-return]


def _arguments(make: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of a function's arguments, those of ours that forward to ResNet included, and whether it takes any."""
    parameters = inspect.signature(make).parameters.values()
    names = [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    if make is resnet:
        return [*names, *inspect.signature(nets.ResNet).parameters][:-1], False
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)
