"""Hold a likelihood against the loss that it is said to belong to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from llqr_sam_ref.optim.curvature.memory import raise_out_of_memory
from llqr_sam_ref.optim.curvature.outputs import Outputs, floats, rebuilt
from llqr_sam_ref.optim.likelihood.base import REDUCTIONS, Likelihood, LossFn
from llqr_sam_ref.optim.likelihood.inference import REMEDY


class Belonging(NamedTuple):
    """What a batch says of a likelihood and a loss.

    Args:
        likelihood: with the class axis and the reduction that the loss has, as far as the batch tells.
        told: whether it tells; False where all labels are ignored, or every slope is lost in rounding.
    """

    likelihood: Likelihood
    told: bool


def held_against(
    likelihood: Likelihood, loss_fn: LossFn, output: Outputs, targets: Any, *, loss: Tensor | None = None
) -> Belonging:
    """Hold a likelihood against its loss where a module was evaluated.

    Without targets, labels are sampled from the likelihood and given to the loss as such. A loss of the outputs alone
    has its labels elsewhere; nothing can be said of it then.

    Args:
        likelihood: as given or inferred.
        loss_fn: the loss.
        output: what the module returns, on a batch.
        targets: as the loss takes them, or None.
        loss: of ``output``, with a graph that reaches its tensors, if it is there already.

    Returns:
        As ``matched``; the likelihood itself, as if it were told, where it cannot be held against the loss.

    Raises:
        ValueError: the likelihood is not the loss's.
    """
    if loss is None:  # cut the graph: what is compared lies after the outputs
        output = rebuilt(output, [leaf.detach().requires_grad_() for leaf in floats(output)])
    with torch.enable_grad():  # z may be computed from the outputs, and is compared where they are
        z = likelihood.read(output)
    if targets is None:
        if _takes_outputs_alone(loss_fn, output):
            return Belonging(likelihood, True)
        return _held_against_samples(likelihood, loss_fn, output, z)
    if loss is None:
        with torch.enable_grad():
            loss = loss_fn(output, targets)
    labels = likelihood.read_labels(targets)
    if labels is None:
        return Belonging(likelihood, True)
    return _held(likelihood, loss_fn, output, z, loss, labels)


def _takes_outputs_alone(loss_fn: LossFn, output: Outputs) -> bool:
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # it has none: ask it
        try:
            with torch.no_grad():
                loss_fn(output)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise_out_of_memory(error)
            return False
        return True
    try:
        signature.bind(output)
    except TypeError:
        return False
    return True


def _held_against_samples(likelihood: Likelihood, loss_fn: LossFn, output: Outputs, z: Tensor) -> Belonging:
    problem: Exception | None = None
    for candidate in likelihood.candidates(z):
        shape = candidate.uniforms_shape(tuple(z.shape))
        u = torch.rand(
            shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu"
        )
        labels = candidate.sample(z.detach(), None, u.to(z.device, z.dtype))
        try:
            with torch.enable_grad():
                loss = loss_fn(output, labels)
            return _held(candidate, loss_fn, output, z, loss, labels, only=True)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise_out_of_memory(error)
            problem = problem or error
    raise ValueError(
        f"likelihood={likelihood} does not fit loss_fn={loss_fn!r}, given labels that are sampled from it: {problem} "
        "Pass the targets too, to be held against the loss."
    )


def _held(
    likelihood: Likelihood,
    loss_fn: LossFn,
    output: Outputs,
    z: Tensor,
    loss: Tensor,
    labels: Tensor,
    *,
    only: bool = False,
) -> Belonging:
    leaves = [leaf for leaf in floats(output) if leaf.requires_grad]
    if any(leaf is z for leaf in leaves):
        (slope,) = torch.autograd.grad(loss, [z], retain_graph=True, allow_unused=True)
        slope = torch.zeros_like(z) if slope is None else slope
        return matched(likelihood, loss_fn, z.detach(), slope.detach(), labels, only=only)
    # z is made of the outputs: compare where the loss reads them.
    reached = torch.autograd.grad(z, leaves, torch.ones_like(z), retain_graph=True, allow_unused=True)
    leaves = [leaf for leaf, there in zip(leaves, reached, strict=True) if there is not None]

    def back(root: Tensor, cotangent: Tensor | None = None) -> Tensor:
        parts = torch.autograd.grad(root, leaves, cotangent, retain_graph=True, allow_unused=True)
        pairs = zip(leaves, parts, strict=True)
        return torch.cat([torch.zeros_like(x).flatten() if g is None else g.flatten() for x, g in pairs])

    return matched(
        likelihood,
        loss_fn,
        z.detach(),
        back(loss).detach(),
        labels,
        pull=lambda slope: back(z, slope),
        only=only,
    )


def matched(
    likelihood: Likelihood,
    loss_fn: LossFn,
    outputs: Float[Tensor, "n ..."],
    slope: Float[Tensor, "n ..."],
    targets: Num[Tensor, "n ..."],
    *,
    pull: Callable[[Tensor], Tensor] | None = None,
    only: bool = False,
) -> Belonging:
    """Hold a likelihood against its loss: its slope must be the gradient that autograd finds, up to a factor.

    Args:
        likelihood: as given or inferred.
        loss_fn: the loss, to be named.
        outputs: z.
        slope: of the loss at z, or where ``pull`` takes a slope at z.
        targets: the labels.
        pull: from a slope at z to where the two are compared.
        only: whether the class axis is the one that the likelihood has.

    Returns:
        The likelihood, with the class axis and the reduction that the loss has, and whether the batch tells them.

    Raises:
        ValueError: the likelihood is not the loss's.
    """
    if not bool(outputs.isfinite().all() & slope.isfinite().all()):
        return Belonging(likelihood, False)  # what is wrong is said where the probes are looked at
    eps = torch.finfo(outputs.dtype).eps
    lost = 100 * eps  # of a slope whose terms are of order 1
    silent, pair, reason = [], None, None
    for candidate in (likelihood,) if only else likelihood.candidates(outputs):
        try:
            total = candidate.slope(outputs, targets)
            divisors = {
                r: float(replace(candidate, reduction=r).divisor(outputs, targets)) for r in REDUCTIONS
            }
        except (RuntimeError, ValueError, IndexError) as error:
            raise_out_of_memory(error)
            reason = reason or error
            continue
        ours, theirs = (
            (candidate.seen(outputs, total), candidate.seen(outputs, slope))
            if pull is None
            else (pull(total), slope)
        )
        size, length = float(ours.abs().max()), float(ours.square().sum())
        if ours.shape != theirs.shape or not divisors["mean"]:
            factor = 0.0
        else:
            factor = float((theirs * ours).sum()) / length if length else 0.0
        if size <= 10 * lost and float(theirs.abs().max()) <= 10 * lost / max(divisors["mean"], 1.0):
            silent.append(candidate)
        elif factor > 0 and float((theirs - factor * ours).abs().max()) <= factor * (eps**0.5 * size + lost):
            own = factor * divisors[candidate.reduction]
            same = [r for r in REDUCTIONS if abs(factor * divisors[r] - 1) < 1e-3]
            if same and abs(own - 1) >= 1e-3:
                candidate = replace(candidate, reduction=same[0])
            return Belonging(candidate, True)
        else:
            pair = pair or (theirs, ours / max(divisors[candidate.reduction], eps))
    if silent:
        return Belonging(silent[0], False)
    if pair is not None:
        raise ValueError(_mismatch(likelihood, loss_fn, *pair))
    raise ValueError(f"likelihood={likelihood} does not fit loss_fn={loss_fn!r}: {reason} {REMEDY}")


def _mismatch(likelihood: Likelihood, loss_fn: LossFn, theirs: Tensor, ours: Tensor) -> str:
    """Both numbers, where they differ most, and what may be the matter."""
    norms = f"has norm {float(theirs.norm()):.6g} and that of the likelihood {float(ours.norm()):.6g}"
    if ours.shape == theirs.shape:
        position = int((theirs - ours).abs().argmax())
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(position, device="cpu"), theirs.shape))
        a, b = float(theirs.flatten()[position]), float(ours.flatten()[position])
        norms += f"; at {where} they are {a:.6g} and {b:.6g}"
    return (
        f"likelihood={likelihood} does not belong to loss_fn={loss_fn!r}: at the outputs the gradient of the loss "
        f"{norms}. {REMEDY}"
    )
