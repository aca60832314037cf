"""What a closure does to the gradients, and what it must not do when it is evaluated twice.

A closure may make gradients or only look at them; it may drop the old ones, fill them with zeros, or leave them in
place, so that the new ones are added. Afterwards the last two look alike. What tells them apart is whether somebody has
written to the old gradient when the backward pass comes to add to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llqr_sam_ref.optim.distributed.shards import is_sharded, local_tensors

__all__: list[str] = []  # private: what SAM does with a closure


class GradientWatch:
    """Watches the gradients during one evaluation of a closure.

    Args:
        parameters: whose gradients.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._old = [(p.grad, _version(p.grad)) for p in self._parameters]
        self._met: dict[
            int, Tensor
        ] = {}  # by number: was there anything in the old gradient that was met untouched?
        self._mixed: dict[int, Tensor] = {}  # the same, once the new one has been added
        self._reached: set[int] = set()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the closure is called.

        Yields:
            Nothing.
        """
        handles: list[Any] = []
        for i, p in enumerate(self._parameters):
            if p.grad is not None and p.requires_grad:
                # The first is called by autograd.grad too, which adds to nothing.
                handles.append(p.register_hook(partial(self._arriving, i)))  # type: ignore[no-untyped-call]
                handles.append(p.register_post_accumulate_grad_hook(partial(self._added, i)))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _arriving(self, i: int, _: Tensor) -> None:
        self._met.pop(i, None)
        if i not in self._reached and self._untouched(i):
            self._met[i] = self._anything(i)

    def _added(self, i: int, _: Tensor) -> None:
        self._reached.add(i)
        if i in self._met:
            self._mixed[i] = self._met.pop(i)

    def _untouched(self, i: int) -> bool:
        old, version = self._old[i]
        return old is not None and self._parameters[i].grad is old and _version(old) == version

    def _anything(self, i: int) -> Tensor:
        """Whether the old gradient is not zero."""
        old = self._old[i][0]
        assert old is not None
        return local_tensors([old])[0].any() if old.layout is torch.strided else torch.tensor(True)

    @property
    def made(self) -> bool:
        """Whether the closure has made gradients."""
        pairs = zip(self._parameters, self._old, strict=True)
        return bool(self._reached) or any(p.grad is not None and p.grad is not old for p, (old, _) in pairs)

    def check_cleared(self) -> None:
        """See that no gradient from before the closure is part of one now; waits for the device only in doubt.

        Raises:
            RuntimeError: one is.
        """
        doubts = dict(self._mixed)
        for i, (p, (old, _)) in enumerate(zip(self._parameters, self._old, strict=True)):
            kept = i not in self._reached and old is not None and p.grad is old
            # No hook is called for a shard: where it is the same tensor, nobody can tell what was done to it.
            if kept and (self._untouched(i) or is_sharded(p)):
                doubts[i] = self._anything(i)
        mixed = sorted(i for i, something in doubts.items() if bool(something))
        if mixed:
            raise RuntimeError(
                f"step(closure): the closure adds to the gradient that parameter {mixed[0]} had before, or leaves it "
                "there, and the second pass of SAM could not make that again. Call opt.zero_grad() at the beginning of "
                "the closure; to accumulate over batches, run all of them once before and once inside "
                "`with opt.perturbed():`, then call step()."
            )


def _version(tensor: Tensor | None) -> int:
    """How often a tensor has been written to."""
    return 0 if tensor is None else local_tensors([tensor])[0]._version


def options_now(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers in groups, to see later whether somebody has changed them.

    Args:
        groups: ``param_groups``.

    Returns:
        Numbers and pairs as they are, tensors by identity and how often they were written to.
    """
    return [
        {
            name: (id(value), value._version) if isinstance(value, Tensor) else value
            for name, value in group.items()
            if isinstance(value, (int, float, tuple, Tensor))
        }
        for group in groups
    ]


def check_options(before: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """See that the second evaluation of a closure has changed no option.

    Args:
        before: what ``options_now`` returned between the two.
        groups: ``param_groups``.

    Raises:
        RuntimeError: it has.
    """
    for number, (then, now) in enumerate(zip(before, options_now(groups), strict=False)):
        for name, value in then.items():
            if now.get(name) != value:
                raise RuntimeError(
                    f"step(closure): the closure changes {name} of group {number} each time it is evaluated, which is "
                    "twice per step; call scheduler.step() after opt.step(closure)."
                )
