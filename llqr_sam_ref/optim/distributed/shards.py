"""Norms and inner products over all parameters, wherever their pieces live.

Under DDP every rank holds whole gradients, already averaged: nothing to do here. Under FSDP2 (and tensor
parallelism) parameters and gradients are ``DTensor``; every rank works on its own shard, and only the n
numbers ``left_i . right_i`` travel: one all-reduce per distinct sharding and step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Tensors = Sequence[Float[Tensor, "*shape"]]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    return isinstance(tensor, _sharded_class())


def _sharded_class() -> Any:
    """``DTensor``; before its module was imported nothing can be one, and this is the empty tuple."""
    module = sys.modules.get("torch.distributed.tensor")
    return () if module is None else module.DTensor


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """Inside, a pass may leave parameters gathered, as the root's are without a backward pass; not at the end."""
    try:
        yield
    finally:
        module = sys.modules.get("torch.distributed.fsdp")
        for part in model.modules():
            if module is not None and isinstance(part, module.FSDPModule):
                part.reshard()


def local_tensors(tensors: Tensors) -> list[Tensor]:
    """What this rank holds of each tensor: the shard of a ``DTensor``; complex numbers as pairs of reals.

    The results share memory with the tensors, so that writing to one writes to the other.

    Args:
        tensors: parameters, gradients or states.

    Returns:
        One plain real tensor for each.
    """
    sharded = _sharded_class()  # asked once: this runs for every tensor in every step
    shards = [_placed(t).to_local() if isinstance(t, sharded) else t for t in tensors]
    shards = [t.detach() if t.requires_grad else t for t in shards]
    return [torch.view_as_real(t) if t.is_complex() else t for t in shards]


def widen(tensors: Tensors) -> list[Tensor]:
    """Half-precision tensors as float32; the others as they are."""
    return [t.float() if t.dtype in {torch.float16, torch.bfloat16} else t for t in tensors]


def on(scale: Tensor | float, tensor: Tensor) -> Tensor | float:
    """A number, which may be a 0-d tensor, on the device of a tensor."""
    return scale.to(tensor.device) if isinstance(scale, Tensor) else scale


def check_gradient(parameter: Tensor, gradient: Tensor, which: str) -> None:
    """Refuse a gradient whose norm cannot be known here.

    Args:
        parameter: what it belongs to.
        gradient: its ``.grad``.
        which: how to call the parameter.

    Raises:
        RuntimeError: the gradient is sparse, or the parameter is a piece that FSDP1 cut.
    """
    if gradient.layout is not torch.strided:
        raise RuntimeError(
            f"{which} has a gradient of layout {gradient.layout}; a dense one is needed: pass sparse=False "
            "to the embedding."
        )
    if getattr(parameter, "_fsdp_flattened", False):
        raise RuntimeError(
            f"{which} is a piece of a FullyShardedDataParallel module, whose norm no rank knows; shard with "
            "torch.distributed.fsdp.fully_shard (FSDP2) instead."
        )


def match_sharding(tensors: Tensors, parameters: Tensors) -> list[Tensor]:
    """Gradients laid out as their parameters are (tensor parallelism may deliver another layout).

    Args:
        tensors: one for each parameter.
        parameters: what they belong to.

    Returns:
        The tensors, redistributed where the layout differs.
    """
    sharded = _sharded_class()
    return [
        _placed(t).redistribute(placements=_placed(p).placements)
        if isinstance(t, sharded) and _placed(t).placements != _placed(p).placements
        else t
        for t, p in zip(tensors, parameters, strict=True)
    ]


def placed_as(local: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor, sharded as the parameter is, where it is.

    Args:
        local: what this rank holds.
        parameter: the parameter that it belongs to.

    Returns:
        ``local`` itself for a whole parameter, else a tensor of its type; memory is shared.
    """
    if not is_sharded(parameter):
        return local
    shape, stride = parameter.shape, parameter.stride()
    return _distributed(
        local.view(parameter.to_local().shape), parameter, parameter.placements, shape, stride
    )


def _distributed(local: Tensor, parameter: Any, placements: Any, shape: Any, stride: Any) -> Tensor:
    """A ``DTensor`` of a local tensor that may be a part of another: torch cannot copy one made with an offset."""
    placed: Any = type(parameter.data).from_local(
        torch.empty_like(local), parameter.device_mesh, placements, shape=shape, stride=stride
    )
    placed._local_tensor = local
    return placed  # type: ignore[no-any-return]


def cut_of(parameter: Any) -> tuple[int, int] | None:
    """Along which axis a parameter is cut, and into how many parts.

    Args:
        parameter: whole or sharded.

    Returns:
        Axis and number of parts; None where it is cut along several axes or of a mesh, unevenly or not at all.
    """
    if not is_sharded(parameter):
        return None
    mesh, placements = parameter.device_mesh, parameter.placements
    cuts = [(p.dim, mesh.size(i)) for i, p in enumerate(placements) if type(p).__name__ == "Shard"]
    others = [p for p in placements if type(p).__name__ != "Shard"]
    return cuts[0] if len(cuts) == 1 and all(p.is_replicate() for p in others) else None


def placed_beside(local: Tensor, parameter: Any, shape: tuple[int, ...], *, cut: bool) -> Tensor:
    """This rank's part of a tensor that belongs to a side of a sharded parameter.

    Args:
        local: what this rank holds.
        parameter: the parameter.
        shape: of the whole tensor.
        cut: whether it is cut along its first axis as the parameter is, or the same on all ranks.

    Returns:
        A tensor of the parameter's type; memory is shared.
    """
    from torch.distributed.tensor import Replicate, Shard  # there already, where a parameter is sharded

    placements = [p if p.is_replicate() else Shard(0) if cut else Replicate() for p in parameter.placements]
    stride = torch.empty(shape, device="meta").stride()
    return _distributed(local.view(-1, *shape[1:]), parameter, placements, torch.Size(shape), stride)


def inner_products(
    lefts: Tensors, rights: Tensors, parameters: Tensors, foreach: bool = True
) -> Float[Tensor, " n"]:
    """left_i . right_i for every tensor i, over all its shards, summed in float32 or better.

    Args:
        lefts: local tensors, float32 or float64.
        rights: local tensors of the same shapes; the same list gives squared lengths.
        parameters: the optimizer's parameters, which know how they are sharded.
        foreach: one launch for all tensors where that is possible.

    Returns:
        The n products in float64 (float32 where the device has no float64), on the device of the first
        tensor.
    """
    if lefts is rights:
        norms = torch._foreach_norm(tuple(lefts)) if foreach else [torch.linalg.vector_norm(t) for t in lefts]
        values = _gather(norms).square()
    else:
        values = _gather([
            torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(lefts, rights, strict=True)
        ])
    return sum_over_shards(values, parameters)


def sum_over_shards(values: Float[Tensor, "n ..."], parameters: Tensors) -> Float[Tensor, "n ..."]:
    """Complete the sum of every entry over the ranks that hold the other shards of its parameter.

    Args:
        values: what this rank found for each parameter.
        parameters: the optimizer's parameters, in the same order.

    Returns:
        The sums; ``values`` itself where nothing is sharded.

    Raises:
        RuntimeError: a parameter is a partial sum, whose norm is not known locally.
    """
    rows: dict[Any, list[int]] = {}
    sharded = _sharded_class()
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, sharded):
            for group in _shard_groups(index, _placed(parameter)):
                rows.setdefault(group, []).append(index)
    for group, indices in rows.items():
        part = values[indices]
        torch.distributed.all_reduce(part, group=group)
        values[indices] = part
    return values


def _shard_groups(index: int, parameter: Any) -> list[Any]:
    """The process groups over which a parameter is cut; over the others it is replicated."""
    groups = []
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_partial():
            raise RuntimeError(
                f"parameter {index} has the placement {placement}, a partial sum; redistribute it to shards "
                "or replicas before it is given to the optimizer."
            )
        if not placement.is_replicate():
            groups.append(parameter.device_mesh.get_group(dimension))
    return groups


def _gather(scalars: Sequence[Tensor]) -> Tensor:
    """Stack 0-d tensors, possibly of several devices, in the widest float of the first one's device."""
    device = scalars[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([s if s.device == device else s.to(device) for s in scalars]).to(wide)


def _placed(tensor: Tensor) -> Any:
    """A ``DTensor``, for the type checker: its class is imported by whoever makes one."""
    return tensor
