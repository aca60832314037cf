"""From a name to a model that fits a data set; any other by package:function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from llqr_sam_ref import nets
from llqr_sam_ref.errors import UserError, unknown_name
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
        UserError: the name, package, function or an argument is unknown, or the model does not fit.
    """
    make = _maker(config.model)
    given = parse("model_args", config.model_args)
    signature = _signature(make, config.model)
    known = [
        p.name for p in signature.parameters.values() if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}
    ]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in given:
        if name not in known and not takes_all:
            raise UserError(unknown_name("model_args", name, known))
    fitting = {name: value for name, value in shape.items() if name in known}
    if takes_all and "num_classes" in shape:
        fitting["num_classes"] = shape["num_classes"]
    try:
        signature.bind(**fitting | given)
    except TypeError as error:
        raise UserError(
            f"model={config.model!r} does not fit this data set, which offers {dict(shape)}: {error}."
        ) from None
    model = _made(make, config, fitting | given)
    if not isinstance(model, nn.Module):
        raise UserError(f"model={config.model!r} made a {type(model).__name__}, not a torch module.")
    return model


def _maker(name: str) -> Callable[..., Any]:
    if ":" not in name:
        if name not in MODELS:
            raise UserError(unknown_name("model", name, MODELS) + " Or give package:function.")
        return MODELS[name]
    package, _, function = name.partition(":")
    try:
        module = import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise UserError(
            f"model={name!r} cannot be found: {error}; install the package or correct it."
        ) from None
    except ValueError:  # an empty name, or one that begins with a point
        raise UserError(f"model={name!r} cannot be found; write package:function.") from None
    if not hasattr(module, function):
        functions = [known for known, value in vars(module).items() if callable(value)]
        raise UserError(f"model={name!r} cannot be found: " + unknown_name("function", function, functions))
    make = getattr(module, function)
    if not callable(make):
        raise UserError(f"model={name!r} is no function; name one that returns a module.")
    return make  # type: ignore[no-any-return]


def _signature(make: Callable[..., Any], name: str) -> inspect.Signature:
    """A function's arguments; in place of those that our ``resnet`` hands on, ResNet's."""
    try:
        signature = inspect.signature(make)
    except ValueError:
        raise UserError(
            f"model={name!r} does not say which arguments it takes; name a Python function around it."
        ) from None
    if make is not resnet:
        return signature
    handed_on = list(inspect.signature(nets.ResNet).parameters.values())
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own}
    more = [p for p in handed_on if p.name not in {"block", *names}]
    return signature.replace(parameters=[*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in more)])


def _made(make: Callable[..., Any], config: ModelConfig, arguments: Mapping[str, Any]) -> Any:
    """The model. A TypeError in one of ours means an argument of a wrong type; in another it is that model's own."""
    if config.model not in MODELS:
        return make(**arguments)
    try:
        return make(**arguments)
    except TypeError as error:
        raise UserError(
            f"model={config.model!r} cannot be made with model_args={list(config.model_args)}: {error}; pass values "
            "of the types that it takes."
        ) from error
