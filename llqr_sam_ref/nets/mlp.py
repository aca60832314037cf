"""Multilayer perceptrons: the network as a chain of dense stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from llqr_sam_ref.errors import UserError, check_choice, check_count

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


def mlp(widths: Sequence[int], activation: str = "relu", *, bias: bool = True) -> nn.Sequential:
    """A chain of linear stages, an activation after each but the last; the input is flattened.

    Args:
        widths: units from the input to the output, for example (784, 512, 512, 10): N = len(widths) - 1
            layers.
        activation: "relu", "tanh", "gelu", "silu" or "sigmoid".
        bias: whether the linear stages have one.

    Returns:
        A module from (n, ...) to (n, widths[-1]).

    Raises:
        UserError: fewer than two widths, a width below 1, or an unknown activation.
    """
    if len(widths) < 2:
        raise UserError(f"widths={tuple(widths)} has no layer; pass at least an input and an output width.")
    for width in widths:
        check_count("widths", width)
    check_choice("activation", activation, ACTIVATIONS)
    stages: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        stages += [nn.Linear(inputs, outputs, bias=bias), ACTIVATIONS[activation]()]
    return nn.Sequential(*stages[:-1])
