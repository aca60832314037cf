"""What a module returns: a tensor, or containers of tensors; and the curvature of loss and likelihood there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from llqr_sam_ref.optim._tree import flatten, unflatten
from llqr_sam_ref.optim.likelihood import Likelihood

Outputs = Any  # a tensor, or containers of tensors


def floats(output: Outputs) -> list[Tensor]:
    """The floating-point tensors in what a module returns.

    Args:
        output: a tensor or containers of tensors.

    Returns:
        The tensors, in order.
    """
    return [leaf for leaf in flatten(output)[0] if _is_float(leaf)]


def rebuilt(output: Outputs, tensors: Sequence[Tensor]) -> Outputs:
    """What a module returns with other floating-point tensors in it.

    Args:
        output: as the module returned it.
        tensors: one for each of ``floats(output)``.

    Returns:
        The same containers, or copies of them, around the new tensors.
    """
    leaves, tree = flatten(output)
    new = iter(tensors)
    return unflatten([next(new) if _is_float(leaf) else leaf for leaf in leaves], tree)


def described(output: Outputs) -> str:
    """What a module returned, in words."""
    if isinstance(output, Tensor):
        return f"outputs of shape {tuple(output.shape)}"
    return f"outputs of type {type(output).__name__}"


def all_finite(output: Outputs) -> Tensor:
    """Whether an output is finite (0-d); containers may hold masks with infinities, so only a bare tensor is asked."""
    if isinstance(output, Tensor):
        return output.isfinite().all()
    return torch.ones((), dtype=torch.bool, device=floats(output)[0].device)


def alike(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors differ by rounding at most (waits for the device).

    Args:
        values: some tensors.
        others: what they should be.

    Returns:
        Whether shapes are equal and differences are small beside the largest entry.
    """
    return len(values) == len(others) and all(
        value.shape == true.shape
        and (not true.numel() or not float((value - true).abs().max()) > _rounding(true))
        for value, true in zip(values, others, strict=True)
    )


def loss_curvature(
    slopes: Sequence[Tensor], outputs: Sequence[Tensor], change: Sequence[Tensor]
) -> list[Tensor]:
    """The product l''(z) dz.

    Args:
        slopes: l'(z), one for each of ``outputs``, with their graphs.
        outputs: z, the leaves of those.
        change: dz.

    Returns:
        One tensor for each output.
    """
    pairs = [(slope, dz) for slope, dz in zip(slopes, change, strict=True) if slope.requires_grad]
    parts = torch.autograd.grad(
        [slope for slope, _ in pairs],
        list(outputs),
        [dz for _, dz in pairs],
        retain_graph=True,
        allow_unused=True,
    )
    return [torch.zeros_like(z) if part is None else part for z, part in zip(outputs, parts, strict=True)]


def likelihood_curvature(
    likelihood: Likelihood,
    output: Outputs,
    outputs: Sequence[Tensor],
    labels: Tensor | None,
    change: Sequence[Tensor],
) -> list[Tensor]:
    """The product Q dz of a likelihood, in the units of its loss.

    Args:
        likelihood: p(y | z).
        output: what the module returns; z is taken from it, or made of it.
        outputs: the tensors in it.
        labels: y as given, only to know which count.
        change: of ``outputs``.

    Returns:
        One tensor for each of ``outputs``.
    """
    z = likelihood.read(output)

    def product(dz: Tensor) -> Tensor:
        at = z.detach()
        return likelihood.curvature(at, labels, dz) / likelihood.divisor(at, labels)

    where = [index for index, tensor in enumerate(outputs) if tensor is z]
    if where:
        result = [torch.zeros_like(tensor) for tensor in outputs]
        result[where[0]] = product(change[where[0]])
        return result

    def read(*tensors: Tensor) -> Tensor:
        return likelihood.read(rebuilt(output, tensors))

    here = tuple(tensor.detach() for tensor in outputs)
    dz = jvp(read, here, tuple(change))[1]
    _, pull = vjp(read, *here)  # type: ignore[misc]
    return list(pull(product(dz)))


def _rounding(values: Tensor) -> float:
    """How much two ways to compute the same values may differ."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return largest * math.sqrt(torch.finfo(values.dtype).eps)


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
