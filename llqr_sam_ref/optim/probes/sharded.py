"""Probe gradients of a model whose parameters are sharded (FSDP2): plain passes, one micro-batch after the other.

The backward pass averages gradients over the ranks, so that probe j belongs to the j-th micro-batches of all ranks
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llqr_sam_ref.optim._tree import map_tensors
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.curvature.outputs import floats
from llqr_sam_ref.optim.distributed.shards import local_tensors, match_sharding, widen
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn


def sharded_gradients(
    module: nn.Module,
    law: Likelihood | LossFn,
    parts: list[tuple[Any, Any]],
    uniforms: Callable[[tuple[int, ...]], Tensor],
    scales: Callable[[Any], list[float]],
) -> Vector:
    """This rank's shards of the gradients of k micro-batches.

    Args:
        module: in evaluation mode; its ``.grad`` are set aside and put back.
        law: the likelihood, with labels sampled from the model, or the loss, with labels as given.
        parts: inputs and targets of each of the k micro-batches in this rank's share.
        uniforms: what gives uniforms of a shape, to sample labels from.
        scales: what each micro-batch's mean (or loss) is multiplied by, told by the outputs of one; where it is 0, no
            label counts.

    Returns:
        Stacked local gradients (k, *local shape) by parameter name, in float32 or better.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    aside = [(p, p.grad) for p in parameters.values()]
    gathered: list[list[Tensor]] = []
    factors: list[float] = []
    drawn: list[Tensor] = []
    try:
        for index, (inputs, targets) in enumerate(parts):
            for p in parameters.values():
                p.grad = None
            with torch.enable_grad():
                output = called(module, inputs)
                factors = factors or scales(output)
                z = law.read(output) if isinstance(law, Likelihood) else None
                if z is not None and not drawn:
                    rows, *others = law.uniforms_shape(tuple(z.shape))  # type: ignore[union-attr]
                    drawn = list(uniforms((rows * len(parts), *others)).chunk(len(parts)))
                if isinstance(law, Likelihood):
                    assert z is not None
                    at, labels = z.detach(), law.read_labels(targets)
                    slope = law.sampled_slope(at, labels, drawn[index].to(at))
                    terms = law.terms(at, labels)
                    torch.autograd.backward(z, slope * (factors[index] / torch.where(terms > 0, terms, 1)))
                elif factors[index]:
                    loss = law(output) if targets is None else law(output, targets)
                    torch.autograd.backward(loss * factors[index])
                else:  # the other ranks wait for this one's backward pass
                    torch.autograd.backward([0.0 * leaf.sum() for leaf in floats(output)])
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
            placed = match_sharding(gradients, list(parameters.values()))
            gathered.append([g.clone() for g in widen(local_tensors(placed))])
    finally:
        for p, gradient in aside:
            p.grad = gradient
    stacks = (torch.stack(stack) for stack in zip(*gathered, strict=True))
    return dict(zip(parameters, stacks, strict=True))


def called(module: nn.Module, inputs: Any) -> Any:
    """What a module returns, given copies of the inputs.

    Args:
        module: any module.
        inputs: a tuple of positional or a mapping of keyword arguments; anything else is the one argument.

    Returns:
        Its outputs.
    """
    inputs = map_tensors(lambda tensor: tensor.detach().clone(), inputs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)
