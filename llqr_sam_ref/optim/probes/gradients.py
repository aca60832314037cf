"""Probes: the gradients of the mean loss on equal micro-batches of a probe batch, against sampled or given labels.

Against labels sampled from the model, V_j of micro-batch j has covariance F/m for m likelihood terms in it, F the
mean Fisher matrix at the weights: the probes of one backward pass say what curvature looks like without any
product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.conv import _ConvNd

from llqr_sam_ref.errors import check_count
from llqr_sam_ref.optim._tree import batch_size, check_split, is_split, sizes
from llqr_sam_ref.optim.curvature.functional import Batch, Point, PureModule, Vector, isolated
from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory
from llqr_sam_ref.optim.curvature.outputs import Outputs, all_finite
from llqr_sam_ref.optim.likelihood import Likelihood, LossFn

# (outputs, targets, extra) of a micro-batch -> a number whose gradient is wanted, and whether all is finite
Objective = Callable[[Outputs, Any, Tensor | None], tuple[Tensor, Tensor]]


@dataclass
class Batching:
    """What was found out about a model: whether its micro-batches can share every operation.

    Args:
        refused: an operation cannot be batched; it is not tried again.
    """

    refused: bool = False


def sampled_gradients(
    module: nn.Module,
    likelihood: Likelihood,
    inputs: Batch,
    targets: Any,
    uniforms: Float[Tensor, "n ..."],
    *,
    probes: int,
    batching: Batching | None = None,
) -> Vector:
    """V_j = gradient of the mean of -log p(y | z) over micro-batch j, labels y drawn from the model.

    Args:
        module: f, in evaluation mode; nothing of it changes.
        likelihood: p(y | z).
        inputs: the probe batch: a tuple of positional or a mapping of keyword arguments; anything else is the one
            argument.
        targets: the given labels, only to know which positions count, and how much; None counts all.
        uniforms: numbers in [0, 1) of shape ``likelihood.uniforms_shape(z.shape)``.
        probes: k, equal contiguous micro-batches; must divide the number of examples.
        batching: what is known of the model, and is added to.

    Returns:
        Stacked gradients (k, *shape) by parameter name, in float32 or better; zero where no label counts.

    Raises:
        ValueError: the batch cannot be divided, does not fit, or gives gradients that are not finite; the
            module is in training mode.

    Source: George et al. (2018), arXiv 1806.03884, section 3; the book, chapters 16 and 18.
    """

    def objective(output: Outputs, given: Any, u: Tensor | None) -> tuple[Tensor, Tensor]:
        z, labels = likelihood.read(output), likelihood.read_labels(given)
        at = z.detach()
        terms = likelihood.terms(at, labels)
        assert u is not None
        slope = likelihood.sampled_slope(at, labels, u) / torch.where(terms > 0, terms, 1)
        return (z * slope).sum(), at.isfinite().all()

    return _micro_batch_gradients(module, objective, inputs, targets, uniforms, probes, batching)


def batch_gradients(
    module: nn.Module,
    loss_fn: LossFn,
    inputs: Batch,
    targets: Any,
    *,
    probes: int,
    batching: Batching | None = None,
) -> Vector:
    """V_j = gradient of the loss over micro-batch j, labels as given.

    Args:
        module: f, in evaluation mode; nothing of it changes.
        loss_fn: the loss, with its own reduction.
        inputs: the probe batch.
        targets: its labels, or None for losses of the outputs alone.
        probes: k, equal contiguous micro-batches; must divide the number of examples.
        batching: what is known of the model, and is added to.

    Returns:
        Stacked gradients (k, *shape) by parameter name, in float32 or better.

    Raises:
        ValueError: as ``sampled_gradients``.
    """

    def objective(output: Outputs, labels: Any, _: Tensor | None) -> tuple[Tensor, Tensor]:
        value = loss_fn(output) if labels is None else loss_fn(output, labels)
        if value.numel() != 1:
            raise ValueError("loss_fn must return a scalar tensor; use reduction='mean' or 'sum'.")
        return value.reshape(()), all_finite(output)

    return _micro_batch_gradients(module, objective, inputs, targets, None, probes, batching)


def scaled(V: Vector, scales: list[float]) -> Vector:
    """Probes times numbers; 0 where the number is 0, whatever the probe is.

    Args:
        V: probes, stacked along the first axis of each parameter's tensor.
        scales: one number per probe.

    Returns:
        The same stacks, scaled; V itself where all numbers are 1.
    """
    if all(scale == 1.0 for scale in scales):
        return V
    product = {}
    for name, tensor in V.items():
        factors = torch.tensor(scales, dtype=tensor.dtype, device=tensor.device)
        factors = factors.view(-1, *(1 for _ in tensor.shape[1:]))
        product[name] = torch.where(factors == 0, 0.0, tensor * factors)
    return product


def check_finite(V: Vector) -> None:
    """Refuse probes with NaN or Inf.

    Args:
        V: probes.

    Raises:
        ValueError: names the first parameter that has some.
    """
    finite = [tensor.isfinite().all() for tensor in V.values()]
    if not bool(torch.stack([f.to(finite[0].device) for f in finite]).all()):
        name = next(name for name, good in zip(V, finite, strict=True) if not good)
        raise ValueError(
            f"the probe batch gives a gradient with NaN or Inf in {name!r}; check its inputs, and lower the "
            "learning rate if the weights have diverged."
        )


def _micro_batch_gradients(
    module: nn.Module,
    objective: Objective,
    inputs: Batch,
    targets: Any,
    extra: Tensor | None,
    probes: int,
    batching: Batching | None,
) -> Vector:
    check_count("probes", probes)
    pure = PureModule(module, torch.sum)
    point = pure.at(inputs, targets)
    split = _Split(pure, point, batch_size(inputs, targets), extra, probes)
    try:
        with isolated(pure.device):
            gradients, finite = _run(pure, point, objective, split, batching or Batching())
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise_out_of_memory(error)
        raise ValueError(f"no gradients on the probe batch: {error} {split.problem}") from error
    if not bool(finite.all()):
        raise ValueError("the probe batch gives outputs that are not finite; remove NaN and Inf from it.")
    return dict(zip(pure.names, gradients, strict=True))


class _Split:
    """The tensors of a batch in equal micro-batches: with a leading axis for those, or whole.

    Args:
        pure: the module.
        point: where, with the batch.
        examples: how many there are.
        extra: a tensor beside the batch that is split too, or None.
        probes: k.
    """

    def __init__(
        self, pure: PureModule, point: Point, examples: int, extra: Tensor | None, probes: int
    ) -> None:
        start = len(point.layout.fixed)
        self.fixed, leaves = point.rest[:start], point.rest[start:]
        self.probes, inputs = probes, point.layout.inputs
        extra = None if extra is None else extra.to(pure.device)
        self.problem = sizes(leaves, () if extra is None else (extra,))
        if examples % probes:
            raise ValueError(f"probes={probes} does not divide the {examples} examples of the probe batch.")
        if extra is not None and (not examples or len(extra) % examples):
            raise ValueError(self.problem)
        self.axes: list[int | None] = [
            0 if probes > 1 and is_split(leaf, examples, target=index >= inputs) else None
            for index, leaf in enumerate(leaves)
        ]
        check_split(leaves[:inputs], examples, probes)
        self.parts = [
            _folded(leaf, probes) if axis == 0 else leaf for leaf, axis in zip(leaves, self.axes, strict=True)
        ]
        self.extra = None if extra is None else _folded(extra, probes)

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """The tensors of each micro-batch."""
        for index in range(self.probes):
            leaves = [
                part[index] if axis == 0 else part for part, axis in zip(self.parts, self.axes, strict=True)
            ]
            yield leaves, None if self.extra is None else self.extra[index]


def _folded(leaf: Tensor, probes: int) -> Tensor:
    return leaf.reshape(probes, len(leaf) // probes, *leaf.shape[1:])


def _run(
    pure: PureModule, point: Point, objective: Objective, split: _Split, batching: Batching
) -> tuple[list[Tensor], Tensor]:
    # Micro-batches share every operation, except that convolutions would become grouped ones, which are slower.
    alone = split.probes == 1 or any(isinstance(part, _ConvNd) for part in pure.module.modules())
    refused = False
    if not (alone or batching.refused):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return _at_once(pure, point, objective, split)
        except RuntimeError as error:
            raise_out_of_memory(error)
            refused = True  # an operation that cannot be batched, or a batch that does not fit
    result = _one_by_one(pure, point, objective, split)
    batching.refused |= refused  # the batch fits
    return result


def _one_by_one(
    pure: PureModule, point: Point, objective: Objective, split: _Split
) -> tuple[list[Tensor], Tensor]:
    """A forward and a backward pass per micro-batch."""
    stacked = [p.new_empty((split.probes, *p.shape)) for p in point.params]
    finite = []
    for index, (leaves, extra) in enumerate(split):
        params = [p.detach().requires_grad_() for p in point.params]
        rest = [*split.fixed, *leaves]
        with torch.enable_grad():
            output, _ = pure.run(params, rest, point.layout)
            value, good = objective(output, pure.targets(rest, point.layout), extra)
        finite.append(good)
        slopes: tuple[Tensor | None, ...] = torch.autograd.grad(value, params, allow_unused=True)
        for stack, slope in zip(stacked, slopes, strict=True):
            if slope is None:
                stack[index].zero_()
            else:
                stack[index].copy_(slope)
    return stacked, torch.stack(finite)


def _at_once(
    pure: PureModule, point: Point, objective: Objective, split: _Split
) -> tuple[list[Tensor], Tensor]:
    """All micro-batches through every operation together."""

    def one(extra: Tensor | None, *leaves: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        rest = [*split.fixed, *leaves]

        def value(params: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            output, _ = pure.run(params, rest, point.layout)
            return objective(output, pure.targets(rest, point.layout), extra)

        slopes, finite = grad(value, has_aux=True)(tuple(point.params))
        return slopes, finite

    axes = (None if split.extra is None else 0, *split.axes)
    gradients, finite = vmap(one, in_dims=axes)(split.extra, *split.parts)
    return list(gradients), finite
