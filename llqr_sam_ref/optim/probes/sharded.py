"""Probe gradients of a model whose parameters are sharded (FSDP2): plain passes, one micro-batch after the other.

The backward pass averages gradients over the ranks, so that probe j belongs to the j-th micro-batches of all ranks
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.shards import local_tensors, match_sharding, widen
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn


def sharded_gradients(
    module: nn.Module,
    law: Likelihood | LossFn,
    inputs: Any,
    targets: Any,
    uniforms: Callable[[tuple[int, ...]], Tensor],
    *,
    probes: int,
) -> tuple[Vector, tuple[int, ...]]:
    """This rank's shards of the gradients of k micro-batches.

    Args:
        module: in evaluation mode; its ``.grad`` are set aside and put back.
        law: the likelihood, with labels sampled from the model, or the loss, with labels as given.
        inputs: this rank's share of the probe batch: a tensor, a tuple or a mapping.
        targets: its labels, or None.
        uniforms: what gives uniforms of a shape, to sample labels from.
        probes: k, must divide the number of examples.

    Returns:
        Stacked local gradients (k, *local shape) by parameter name, in float32 or better, and the shape of the
        outputs on the whole share.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    aside = [(p, p.grad) for p in parameters.values()]
    found: list[list[Tensor]] = []
    drawn: list[Tensor] = []
    try:
        for index in range(probes):
            x, y = pytree.tree_map(lambda leaf: _shard(leaf, index, probes), (inputs, targets))  # noqa: B023
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad():
                z = module(**x) if isinstance(x, Mapping) else module(*(x if isinstance(x, tuple) else (x,)))
                shape = (len(z) * probes, *z.shape[1:])
                if isinstance(law, Likelihood):
                    if not drawn:
                        drawn = list(uniforms(law.uniforms_shape(shape)).chunk(probes))
                    at = z.detach()
                    slope = law.score(at, law.sample(at, y, drawn[index].to(at))) / law.terms(at, y)
                    torch.autograd.backward(z, slope)
                else:
                    torch.autograd.backward(law(z) if y is None else law(z, y))
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
            placed = match_sharding(gradients, list(parameters.values()))
            found.append([g.clone() for g in widen(local_tensors(placed))])
    finally:
        for p, gradient in aside:
            p.grad = gradient
    stacks = (torch.stack(stack) for stack in zip(*found, strict=True))
    return dict(zip(parameters, stacks, strict=True)), shape


def _shard(leaf: Any, index: int, probes: int) -> Any:
    return leaf.chunk(probes)[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf
