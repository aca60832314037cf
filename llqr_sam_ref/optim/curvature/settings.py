"""What a forward pass reads of a module beside its tensors: a trace is good for these settings alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import nn

_TENSORS_OF_A_MODULE = {"_parameters", "_buffers", "_modules", "training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def settings(module: nn.Module) -> Hashable:
    """What a forward pass can read of a module beside its tensors, as far as it can be compared.

    Args:
        module: with all that is in it.

    Returns:
        Numbers and names by their values, containers by what they hold, other objects by their identity. (What changes
        inside such an object is noticed when a trace is compared with the module.)
    """
    return tuple(
        (
            name,
            type(part),
            _comparable({k: v for k, v in vars(part).items() if k not in _TENSORS_OF_A_MODULE}),
        )
        for name, part in module.named_modules()
    )


def _comparable(value: object) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value if value == value else "nan"
    if isinstance(value, Mapping):
        return type(value), tuple((_comparable(k), _comparable(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_comparable, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_comparable, value))
    return type(value), id(value)
