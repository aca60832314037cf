"""How the base optimizer is made to step by U: on its gradient or on its update, and how long the step is."""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from llqr_sam_ref.optim._random import random_state, set_random_state
from llqr_sam_ref.optim.distributed.shards import (
    Tensors,
    inner_products,
    is_sharded,
    local_tensors,
    placed_as,
    widen,
)

__all__: list[str] = []  # private: what LLQR does in a step


def apply_rule(
    rule: str, S: list[Tensor], v: Sequence[Tensor], parameters: Tensors, learned: Sequence[bool]
) -> list[Tensor]:
    """Give S = U v its length.

    "rms": S sqrt(d)/|S| over all parameters together; "rms-per-tensor": each by itself; "graft": S |v|/|S|; "none":
    S. Zero stays zero. Parameters whose U is the identity by request have other units: their root mean square is
    their own.

    Tensor by tensor, with s the root mean square of the largest, the step is S/sqrt(mean(S^2) + eps s^2): what rounding
    alone keeps from zero (the bias before a batch normalization) stays small.

    Args:
        rule: which.
        S: preconditioned vector, local tensors of at least float32; overwritten where it is not v itself.
        v: what U was applied to.
        parameters: what they belong to.
        learned: whether U is learned on each of them.

    Returns:
        The step, before the learning rate.

    Source: the book, chapter 21; grafting: Agarwal et al. 2020 (arXiv 2002.11803).
    """
    if rule == "none" or not S:
        return S
    present = inner_products(S, S, parameters)
    if rule == "graft":
        wish = inner_products(v, v, parameters)
    else:
        entries = [float(p.numel()) for p in parameters]
        wish = torch.tensor(entries, dtype=present.dtype, device="cpu").to(present.device)
    if rule == "rms-per-tensor":
        present = present + torch.finfo(S[0].dtype).eps * wish * (present / wish.clamp(min=1)).max()
    else:
        present, wish = (_shared(squares, learned) for squares in (present, wish))
    factors = torch.where(present > 0, (wish / present).sqrt(), 0.0)
    steps = [s.clone() if s is x else s for s, x in zip(S, v, strict=True)]
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(S):
        alike.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (device, dtype), indices in alike.items():
        own = factors[indices] if len(indices) < len(S) else factors
        torch._foreach_mul_([steps[i] for i in indices], list(own.to(device, dtype).unbind()))
    return steps


def _shared(squares: Float[Tensor, " n"], learned: Sequence[bool]) -> Float[Tensor, " n"]:
    """For every parameter the sum over all whose U is learned as its own is, or is not."""
    known = torch.tensor(learned, device=squares.device)
    mine, others = (torch.where(part, squares, 0.0).sum() for part in (known, ~known))
    return torch.where(known, mine, others)


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
def update_from_zero(base: Optimizer, parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let the base step from w = 0 with learning rate 1 and no decay; weights and settings are restored at the end.

    Args:
        base: the optimizer; its own state moves on by one step.
        parameters: all that have a gradient.

    Yields:
        Minus the update, -M: the local weights themselves, at least float32, valid inside only.

    Source: the book, (21.1).
    """
    weights = local_tensors(parameters)
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
        yield widen(local_tensors(parameters))
    finally:
        for group, before in zip(base.param_groups, settings, strict=True):
            group.update(before)
        for parameter, weight in zip(parameters, weights, strict=True):
            if parameter.data_ptr() != weight.data_ptr() and not is_sharded(parameter):
                parameter.data = weight  # a base that makes new weights instead of writing to them
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
    if isinstance(lr, Tensor):
        torch._foreach_add_(wide, torch._foreach_mul(list(moves), lr))
    else:
        torch._foreach_add_(wide, list(moves), alpha=lr)
    torch._foreach_copy_(list(weights), wide)


def check_update(base: Optimizer) -> None:
    """See that a base can be asked for its update: by trying a copy of it on spare parameters.

    The copy is asked at weights of zero with learning rate 1, as every step will ask it, and walks freely from
    elsewhere with another learning rate. Both must make the same updates, the learning rate apart: so SGD's and Adam's
    do, and those that look at the weights, average them or adapt to their own learning rate do not.

    Args:
        base: the optimizer; it is not touched.

    Raises:
        ValueError: it has no learning rate, its update depends on the weights or the learning rate, or no copy of it
            can be tried.
    """
    name = type(base).__name__
    if any("lr" not in group for group in base.param_groups):
        raise ValueError(f"base={name} has no lr, which acts_on='update' needs; use acts_on='gradient'.")
    try:
        asked, walked = _tried(base, walking=False), _tried(base, walking=True)
    except Exception as error:  # whatever a base of somebody else does when it is copied
        raise ValueError(
            f"base={name} cannot be tried on a spare parameter ({type(error).__name__}: {str(error)[:200]}), and "
            "acts_on='update' has to know that its update does not depend on the weights; use acts_on='gradient'."
        ) from error
    for one, other in zip(asked, walked, strict=True):
        size = float(one.abs().max())
        if not math.isfinite(size) or not float((one - other).abs().max()) <= 1e-6 * size:
            raise ValueError(
                f"base={name} makes its update from the weights or from its own schedule, which acts_on='update' sets "
                "aside; use acts_on='gradient' or another base."
            )


TRIAL_STEPS = 24  # longer than the period of bases that look up every few steps
TRIAL_LR = 0.25


def _tried(base: Optimizer, walking: bool) -> list[Tensor]:
    """The updates that a copy of a base makes from given gradients, learning rate and decay taken out.

    Args:
        base: the optimizer.
        walking: from weights that move on, or from zero every time.

    Returns:
        For every spare parameter its updates, step after step along the first axis.
    """
    lr = TRIAL_LR if walking else 1.0
    devices = {p.device for group in base.param_groups for p in group["params"]}
    streams = random_state(devices)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            copied, spares = _copied(base, lr)
            w0, gradients = _walk_of_gradients(spares)
            start = w0 if walking else [torch.zeros_like(w) for w in w0]
            updates: list[list[Tensor]] = [[] for _ in spares]
            torch._foreach_copy_([s.detach() for s in spares], start)
            for now in gradients:
                if not walking:
                    torch._foreach_zero_([s.detach() for s in spares])
                before = [s.detach().clone() for s in spares]
                for spare, gradient in zip(spares, now, strict=True):
                    spare.grad = gradient
                copied.step()
                for kept, spare, old in zip(updates, spares, before, strict=True):
                    kept.append((spare.detach() - old) / lr)
    finally:
        set_random_state(streams)
    return [torch.stack(kept) for kept in updates]


def _walk_of_gradients(spares: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Weights, and gradients with a lasting direction; some of them at right angles to every row of the weights.

    Where a base looks at the weights only under a condition (on their angle to the gradient, say), the condition holds
    somewhere along this walk and fails elsewhere.

    Args:
        spares: parameters, for their shapes.

    Returns:
        Weights, one tensor per parameter, and the gradients of each step.
    """
    numbers = torch.Generator("cpu").manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=numbers, dtype=like.dtype, device="cpu").to(like.device)

    weights, lasting = [draw(s) for s in spares], [draw(s) for s in spares]
    gradients = []
    for step in range(TRIAL_STEPS):
        now = [mean + 0.5 * draw(mean) for mean in lasting]
        if step % 3 == 0:
            rows = [(w.reshape(len(w), -1) if w.ndim > 1 else w.reshape(1, -1)) for w in weights]
            flat = [g.reshape(w.shape) for g, w in zip(now, rows, strict=True)]
            along = [
                (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
                for g, w in zip(flat, rows, strict=True)
            ]
            now = [
                (g - a * w).reshape(like.shape) if w.shape[1] > 1 else g.reshape(like.shape)
                for g, a, w, like in zip(flat, along, rows, spares, strict=True)
            ]
        gradients.append(now)
    return weights, gradients


def _copied(base: Optimizer, lr: float) -> tuple[Optimizer, list[Tensor]]:
    """A base as it was built, on small float64 parameters of the same numbers of axes, without decay.

    Every attribute is copied, those of optimizers inside it too, but for hooks, a step that a scheduler patched, and
    the state of parameters.

    Args:
        base: the optimizer.
        lr: learning rate of the copy.

    Returns:
        The copy, and its parameters.
    """
    memo: dict[int, Any] = {}
    spares: list[Tensor] = []
    for group in base.param_groups:
        smallest: dict[int, Tensor] = {}
        for parameter in group["params"]:
            smallest.setdefault(parameter.ndim, parameter)
        for parameter in smallest.values():
            shape = [min(max(side, 1), 3) for side in parameter.shape]
            device = None if parameter.device.type == "meta" else parameter.device
            spare = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
            memo[id(parameter)] = spare
            spares.append(spare)
        for parameter in group["params"]:
            memo.setdefault(id(parameter), None)
    for inner in _optimizers_in(base):
        whole = {key: value for key, value in inner.state.items() if not isinstance(key, Tensor)}
        memo[id(inner.state)] = defaultdict(dict, copy.deepcopy(whole, memo))
    copied: Optimizer = _deep_copied(base, memo)
    mine = set(map(id, spares))
    for inner in _optimizers_in(copied):
        inner.defaults["differentiable"] = False
        for group in inner.param_groups:
            group["params"][:] = [p for p in group["params"] if id(p) in mine]
            wanted = {
                "lr": lr,
                "weight_decay": 0.0,
                "capturable": False,
                "fused": None,
                "differentiable": False,
            }
            group.update({name: value for name, value in wanted.items() if name in group})
    return copied, spares


def _optimizers_in(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it holds as attributes."""
    nested: list[Optimizer] = []
    waiting = [optimizer]
    while waiting:
        here = waiting.pop()
        if all(here is not other for other in nested):
            nested.append(here)
            waiting += [value for value in vars(here).values() if isinstance(value, Optimizer)]
    return nested


def _deep_copied(optimizer: Optimizer, memo: dict[int, Any]) -> Any:
    """All attributes, which torch's own way of copying leaves out."""
    twin = object.__new__(type(optimizer))
    memo[id(optimizer)] = twin
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            twin.__dict__[name] = OrderedDict()
        elif isinstance(value, Optimizer):
            twin.__dict__[name] = memo[id(value)] if id(value) in memo else _deep_copied(value, memo)
        elif name not in {"step", "_opt_called"}:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin
