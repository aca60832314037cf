"""Hold a likelihood against the loss that it is said to belong to."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from llqr_sam_ref.optim.likelihood.base import Likelihood, LossFn
from llqr_sam_ref.optim.likelihood.inference import REMEDY


def matched(
    likelihood: Likelihood,
    loss_fn: LossFn,
    outputs: Float[Tensor, "n ..."],
    slope: Float[Tensor, "n ..."],
    targets: Num[Tensor, "n ..."],
) -> Likelihood | None:
    """Hold a likelihood against its loss: its slope at the outputs must be the gradient that autograd finds.

    Args:
        likelihood: as given or inferred.
        loss_fn: the loss, to be named.
        outputs: z.
        slope: of the loss at z.
        targets: the labels.

    Returns:
        The likelihood, with the class axis that the loss has; None where the batch does not tell (all labels are
        ignored, or every slope is lost in rounding).

    Raises:
        ValueError: the likelihood is not the loss's.
    """
    eps = torch.finfo(outputs.dtype).eps
    silent, pair, reason = False, None, None
    for candidate in likelihood.candidates(outputs):
        try:
            divisor = candidate.divisor(outputs, targets)
            ours = candidate.seen(outputs, candidate.slope(outputs, targets) / divisor.clamp(min=eps))
        except (RuntimeError, ValueError, IndexError) as error:
            reason = reason or error
            continue
        theirs = candidate.seen(outputs, slope)
        floor = 100 * eps / max(float(divisor), eps)
        size = max(float(theirs.abs().max()), float(ours.abs().max()))
        if not size > 10 * floor:  # NaN too, which others refuse
            silent = True
        elif ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= eps**0.5 * size + floor:
            return candidate
        else:
            pair = pair or (theirs, ours)
    if pair is not None:
        raise ValueError(_mismatch(likelihood, loss_fn, *pair))
    if silent:
        return None
    raise ValueError(f"likelihood={likelihood} does not fit loss_fn={loss_fn!r}: {reason} {REMEDY}")


def _mismatch(likelihood: Likelihood, loss_fn: LossFn, theirs: Tensor, ours: Tensor) -> str:
    """Both numbers, where they differ most, and what may be the matter."""
    norms = f"has norm {float(theirs.norm()):.6g} and that of the likelihood {float(ours.norm()):.6g}"
    hint = ""
    if ours.shape == theirs.shape:
        position = int((theirs - ours).abs().argmax())
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(position), theirs.shape))
        a, b = float(theirs.flatten()[position]), float(ours.flatten()[position])
        norms += f"; at {where} they are {a:.6g} and {b:.6g}"
        factor = float((theirs * ours).sum() / ours.square().sum())
        if factor and float((theirs - factor * ours).norm()) <= 1e-3 * float(theirs.norm()):
            hint = f"They differ by a factor of {factor:.6g}: look at the reduction. "
    return (
        f"likelihood={likelihood} does not belong to loss_fn={loss_fn!r}: at the outputs the gradient of the loss "
        f"{norms}. {hint}{REMEDY}"
    )
