"""Probe gradients of a model whose parameters are sharded (FSDP2): plain passes, one micro-batch after the other.

The backward pass averages gradients over the workers, so that probe j belongs to the j-th micro-batches of all workers
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from llqr_sam_ref.optim.blocks import Vector
from llqr_sam_ref.optim.distributed import local_tensors, match_sharding, widen
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn


def sharded_gradients(
    module: nn.Module,
    law: Likelihood | LossFn,
    inputs: Any,
    targets: Any,
    uniforms: Tensor | None = None,
    *,
    probes: int,
) -> Vector:
    """This rank's shards of the gradients of k micro-batches.

    Args:
        module: in evaluation mode; its ``.grad`` are set aside and put back.
        law: the likelihood, with labels sampled from the model, or the loss, with labels as given.
        inputs: this worker's share of the probe batch: a tensor, a tuple or a mapping.
        targets: its labels, or None.
        uniforms: what sampled labels are made of.
        probes: k, must divide the number of examples.

    Returns:
        Stacked local gradients (k, *local shape) by parameter name, in float32 or better.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    aside = [(p, p.grad) for p in parameters.values()]
    found: list[list[Tensor]] = []
    leaves, tree = pytree.tree_flatten((inputs, targets, uniforms))
    device = next(iter(parameters.values())).device
    size = len(next(leaf for leaf in leaves if isinstance(leaf, Tensor))) // probes
    try:
        for index in range(probes):
            shard = [
                leaf[index * size : (index + 1) * size] if isinstance(leaf, Tensor) and leaf.ndim else leaf
                for leaf in leaves
            ]
            x, y, u = pytree.tree_unflatten(shard, tree)
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                z = module(**x) if isinstance(x, Mapping) else module(*(x if isinstance(x, tuple) else (x,)))
                if isinstance(law, Likelihood):
                    at = z.detach()
                    slope = law.score(at, law.sample(at, y, u.to(at))) / law.terms(at, y)
                    torch.autograd.backward(z, slope)
                else:
                    torch.autograd.backward(law(z) if y is None else law(z, y))
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
            placed = match_sharding(gradients, list(parameters.values()))
            found.append([g.clone() for g in widen(local_tensors(placed))])
    finally:
        for p, gradient in aside:
            p.grad = gradient
    return {
        name: torch.stack(stack) for name, stack in zip(parameters, zip(*found, strict=True), strict=True)
    }
