"""Probes: the gradients of the mean loss on equal micro-batches of a probe batch, against sampled or given labels.

Against labels sampled from the model, V_j of micro-batch j has covariance F/m for m likelihood terms in it, F the
mean Fisher matrix at the weights: the probes of one backward pass say what curvature looks like without any
product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn.modules.conv import _ConvNd

from llqr_sam_ref.errors import check_count
from llqr_sam_ref.optim.curvature.functional import Batch, Point, PureModule, Vector, isolated
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn

Slope = Callable[
    [Tensor, Any, Tensor], Tensor
]  # (outputs, targets, extra) of a micro-batch -> cotangent of its outputs


def sampled_gradients(
    module: nn.Module,
    likelihood: Likelihood,
    inputs: Batch,
    targets: Num[Tensor, "n ..."] | None,
    uniforms: Float[Tensor, "n ..."],
    *,
    probes: int,
) -> Vector:
    """V_j = gradient of the mean of -log p(y | z) over micro-batch j, labels y drawn from the model.

    Args:
        module: f, in evaluation mode; nothing of it changes.
        likelihood: p(y | z).
        inputs: the probe batch: a tensor, a tuple of positional or a mapping of keyword arguments.
        targets: the given labels, only to know which positions are ignored; None counts all.
        uniforms: numbers in [0, 1) of shape ``likelihood.uniforms_shape(outputs.shape)``.
        probes: k, equal contiguous micro-batches; must divide the number of examples.

    Returns:
        Stacked gradients (k, *shape) by parameter name, in float32 or better.

    Raises:
        ValueError: the batch cannot be divided, does not fit, or gives gradients that are not finite; the
            module is in training mode.

    Source: George et al. (2018), arXiv 1806.03884, section 3; the book, chapters 16 and 18.
    """

    def slope(outputs: Tensor, labels: Any, u: Tensor) -> Tensor:
        sampled = likelihood.sample(outputs, labels, u)
        return likelihood.score(outputs, sampled) / likelihood.terms(outputs, labels)

    return _micro_batch_gradients(module, slope, inputs, targets, uniforms, probes)


def batch_gradients(
    module: nn.Module, loss_fn: LossFn, inputs: Batch, targets: Any, *, probes: int
) -> Vector:
    """V_j = gradient of the loss over micro-batch j, labels as given.

    Args:
        module: f, in evaluation mode; nothing of it changes.
        loss_fn: the loss, with its own reduction.
        inputs: the probe batch.
        targets: its labels, or None for losses of the outputs alone.
        probes: k, equal contiguous micro-batches; must divide the number of examples.

    Returns:
        Stacked gradients (k, *shape) by parameter name, in float32 or better.

    Raises:
        ValueError: as ``sampled_gradients``.
    """

    def slope(outputs: Tensor, labels: Any, _: Tensor) -> Tensor:
        def loss(z: Tensor) -> Tensor:
            return loss_fn(z) if labels is None else loss_fn(z, labels)

        slope_of_loss: Tensor = grad(loss)(outputs)
        return slope_of_loss

    return _micro_batch_gradients(module, slope, inputs, targets, None, probes)


def _micro_batch_gradients(
    module: nn.Module, slope: Slope, inputs: Batch, targets: Any, extra: Tensor | None, probes: int
) -> Vector:
    check_count("probes", probes)
    pure = PureModule(module, torch.sum)
    point = pure.at(inputs, targets)
    leaves = point.rest[len(point.layout.fixed) :]
    sizes = [len(leaf) if leaf.ndim else 0 for leaf in (*leaves, *(() if extra is None else (extra,)))]
    count = sizes[0] if sizes else 0
    if count == 0 or any(size != count for size in sizes):
        raise ValueError(
            f"the tensors of the probe batch have {sizes} examples; pass the same number in each."
        )
    if count % probes:
        raise ValueError(f"probes={probes} does not divide the {count} examples of the probe batch.")
    extra = torch.empty(count, device=pure.device) if extra is None else extra.to(pure.device)
    parts = [tensor.reshape(probes, count // probes, *tensor.shape[1:]) for tensor in (*leaves, extra)]
    try:
        with isolated(pure.device):
            gradients, outputs = _run(pure, point, slope, parts, probes)
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(f"no gradients on the probe batch (tensors of shapes {shapes}): {error}") from error
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("the probe batch gives outputs that are not finite; remove NaN and Inf from it.")
    return dict(zip(pure.names, gradients, strict=True))


def _run(
    pure: PureModule, point: Point, slope: Slope, parts: list[Tensor], probes: int
) -> tuple[list[Tensor], Tensor]:
    # Micro-batches share every operation, except that convolutions would become grouped ones, which are slower.
    if not any(isinstance(part, _ConvNd) for part in pure.module.modules()):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return _at_once(pure, point, slope, parts)
        except RuntimeError:
            pass  # an operation that cannot be batched
    return _one_by_one(pure, point, slope, parts, probes)


def _one_by_one(
    pure: PureModule, point: Point, slope: Slope, parts: list[Tensor], probes: int
) -> tuple[list[Tensor], Tensor]:
    """A forward and a backward pass a micro-batch."""
    fixed = point.rest[: len(point.layout.fixed)]
    stacked = [p.new_empty((probes, *p.shape)) for p in point.params]
    outputs = []
    for index in range(probes):
        *leaves, extra = (part[index] for part in parts)
        params = [p.detach().requires_grad_() for p in point.params]
        with torch.enable_grad():
            output = pure.forward(params, [*fixed, *leaves], point.layout)[0]
        outputs.append(output.detach())
        cotangent = slope(outputs[-1], pure.targets([*fixed, *leaves], point.layout), extra)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(output, params, cotangent, allow_unused=True)
        for stack, gradient in zip(stacked, found, strict=True):
            if gradient is None:
                stack[index].zero_()
            else:
                stack[index].copy_(gradient)
    return stacked, torch.stack(outputs)


def _at_once(
    pure: PureModule, point: Point, slope: Slope, parts: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """All micro-batches through every operation together."""
    fixed = point.rest[: len(point.layout.fixed)]

    def one(*part: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        rest, extra = [*fixed, *part[:-1]], part[-1]

        def f(*params: Tensor) -> Tensor:
            return pure.forward(params, rest, point.layout)[0]

        output, pull = vjp(f, *point.params)  # type: ignore[misc]
        return pull(slope(output, pure.targets(rest, point.layout), extra)), output

    gradients, outputs = vmap(one)(*parts)
    return list(gradients), outputs
