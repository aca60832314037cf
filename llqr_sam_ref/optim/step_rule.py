"""How the base optimizer is made to step by U: on its gradient or on its update, and how long the step is."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from llqr_sam_ref.optim.distributed.shards import Tensors, inner_products, is_sharded, placed_as, widen

__all__: list[str] = []  # private: what LLQR does in a step


def apply_rule(
    rule: str, S: list[Tensor], v: Sequence[Tensor], parameters: Tensors, learned: Sequence[bool]
) -> list[Tensor]:
    """Give S = U v its length.

    "rms": S sqrt(d)/|S| over all parameters together; "rms-per-tensor": each by itself; "graft": S |v|/|S|; "none":
    S. Zero stays zero. Parameters whose U is the identity by request have other units: their root mean square is
    their own.

    Args:
        rule: which.
        S: preconditioned vector, local tensors of at least float32.
        v: what U was applied to.
        parameters: what they belong to.
        learned: whether U is learned on each of them.

    Returns:
        The step, before the learning rate: new tensors.

    Source: the book, chapter 21; grafting: Agarwal et al. 2020 (arXiv 2002.11803).
    """
    if rule == "none" or not S:
        return S
    squares = inner_products(S, S, parameters)
    wanted = inner_products(v, v, parameters) if rule == "graft" else None
    steps = list(S)
    for together in _together(rule, learned):
        present = squares[together].sum()
        if wanted is None:
            wish = torch.full_like(present, sum(parameters[i].numel() for i in together))
        else:
            wish = wanted[together].sum()
        factor = torch.where(present > 0, (wish / present).sqrt(), 0.0)
        alike: dict[object, list[int]] = {}
        for i in together:
            alike.setdefault((S[i].device, S[i].dtype), []).append(i)
        for indices in alike.values():
            part = [S[i] for i in indices]
            scaled = torch._foreach_mul(part, factor.to(part[0].device, part[0].dtype))
            for i, step in zip(indices, scaled, strict=True):
                steps[i] = step
    return steps


def _together(rule: str, learned: Sequence[bool]) -> list[list[int]]:
    """Which parameters share a norm."""
    if rule == "rms-per-tensor":
        return [[i] for i in range(len(learned))]
    parts = [[i for i, known in enumerate(learned) if known is kind] for kind in (True, False)]
    return [part for part in parts if part]


@contextmanager
def other_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters have these gradients; afterwards the very tensors that they had before.

    Args:
        parameters: whose ``.grad`` is replaced.
        gradients: local tensors, in any precision.

    Yields:
        Nothing.
    """
    aside = [p.grad for p in parameters]
    try:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = placed_as(gradient, p) if is_sharded(p) else gradient.to(p.dtype)
        yield
    finally:
        for p, before in zip(parameters, aside, strict=True):
            p.grad = before


@contextmanager
def update_from_zero(base: Optimizer, weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Let the base step from w = 0 with learning rate 1 and no decay; weights and settings are restored at the end.

    Args:
        base: the optimizer; its own state moves on by one step.
        weights: local tensors of all parameters that have a gradient.

    Yields:
        Minus the update, -M: the weights themselves, at least float32, valid inside only.

    Source: the book, (21.1).
    """
    saved = [weight.clone() for weight in weights]
    settings = [
        {name: value for name, value in group.items() if name in {"lr", "weight_decay"}}
        for group in base.param_groups
    ]
    try:
        if weights:
            torch._foreach_zero_(weights)
        for group, before in zip(base.param_groups, settings, strict=True):
            group.update({name: 1.0 if name == "lr" else 0.0 for name in before})
        base.step()
        yield widen(weights)
    finally:
        for group, before in zip(base.param_groups, settings, strict=True):
            group.update(before)
        if weights:
            torch._foreach_copy_(weights, saved)


def move(weights: Sequence[Tensor], moves: Sequence[Tensor], lr: float | Tensor, decay: float) -> None:
    """Set w to (1 - lr decay) w + lr move, in place, in the precision of the moves.

    Args:
        weights: local tensors.
        moves: of their shapes, at least float32.
        lr: learning rate.
        decay: weight decay, decoupled.

    Source: the book, (21.1) and thm-decay-after-preconditioning.
    """
    if not weights:
        return
    wide = [w if w.dtype is step.dtype else w.to(step.dtype) for w, step in zip(weights, moves, strict=True)]
    if isinstance(lr, Tensor):
        lr = lr.to(wide[0].device)
    if decay:
        torch._foreach_mul_(wide, 1.0 - lr * decay)
    torch._foreach_add_(wide, torch._foreach_mul(list(moves), lr))
    torch._foreach_copy_(list(weights), wide)


def check_update(base: Optimizer) -> None:
    """See that a base can be asked for its update.

    Args:
        base: the optimizer.

    Raises:
        ValueError: it has no learning rate, or its update depends on the weights.
    """
    name = type(base).__name__
    if any("lr" not in group for group in base.param_groups):
        raise ValueError(f"base={name} has no lr, which acts_on='update' needs; use acts_on='gradient'.")
    if reads_weights(base):
        raise ValueError(
            f"base={name} makes its update from the weights, which acts_on='update' sets aside; use "
            "acts_on='gradient' or another base."
        )


def reads_weights(base: Optimizer) -> bool:
    """Whether the update of an optimizer depends on where the weights are, decay and learning rate apart.

    A twin of the base takes two steps with the same gradients at zero and elsewhere. Adafactor's twin differs (its
    steps are relative to the weights), SGD's and AdamW's do not.

    Args:
        base: the optimizer; it is not touched.

    Returns:
        True if the updates differ; False also where no twin can be built to tell.
    """
    group = base.param_groups[0]
    known = inspect.signature(type(base)).parameters
    options = {name: value for name, value in group.items() if name in known and name != "params"}
    for name, value in {"lr": 1.0, "weight_decay": 0.0, "capturable": False, "fused": None}.items():
        if name in options:
            options[name] = value
    updates = []
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for place in (0.0, 3.0):
                torch.manual_seed(0)
                w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
                twin = type(base)([w], **options)
                for turn in (1.0, -0.5):
                    before = place * torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3)
                    w.detach().copy_(before)
                    w.grad = turn * torch.linspace(-2, 1, 6, dtype=torch.float64).view(2, 3)
                    twin.step()
                updates.append(w.detach() - before)
    except Exception:  # whatever a base of somebody else does when it is built from its group's entries
        return False
    gap = float((updates[0] - updates[1]).abs().max())
    return math.isfinite(gap) and gap > 1e-9 * float(updates[0].abs().max())
