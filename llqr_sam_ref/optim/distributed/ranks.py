"""The processes that share a probe batch: who they are, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils import _pytree as pytree

Nest = TypeVar("Nest")


@dataclass(frozen=True)
class Ranks:
    """A process among those of its group, and what they send one another; alone where torch.distributed is not in use.

    Args:
        group: the process group; None for the default one.
        rank: this process's number, from 0.
        world_size: how many ranks there are.
    """

    group: Any = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, group: Any = None) -> Ranks:
        """This rank of a process group."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def mean(self, tensors: Nest) -> Nest:
        """The mean of every tensor in lists and dicts over the ranks, bitwise the same on all of them."""
        if self.world_size == 1:
            return tensors

        def average(flat: Tensor) -> None:
            dist.all_reduce(flat, group=self.group)
            flat.div_(self.world_size)

        return _together(tensors, average)

    def broadcast(self, tensors: Nest) -> Nest:
        """The tensors in lists and dicts as rank 0 has them."""
        if self.world_size == 1:
            return tensors
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        return _together(tensors, lambda flat: dist.broadcast(flat, source, group=self.group))

    def portion(self, count: int, turn: int) -> slice:
        """This rank's part of some equal pieces of work; who gets the larger parts goes round with the turn.

        Args:
            count: pieces.
            turn: of the work, the same on all ranks.

        Returns:
            The pieces that are its own; those of all ranks together are all.
        """
        place = (self.rank + turn) % self.world_size
        return slice(count * place // self.world_size, count * (place + 1) // self.world_size)

    def assembled(self, tensors: Nest) -> Nest:
        """Tensors in lists and dicts of which every rank has made its share, and left zeros elsewhere."""
        if self.world_size == 1:
            return tensors
        return _together(tensors, lambda flat: dist.all_reduce(flat, group=self.group))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, joined along the first axis in their order."""
        if self.world_size == 1:
            return tensor
        parts = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world_size)
        ]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts)

    def total(self, value: float, device: torch.device) -> float:
        """A number added up over the ranks.

        Args:
            value: here.
            device: that the group communicates from.

        Returns:
            The sum, the same on all ranks.
        """
        if self.world_size == 1:
            return value
        return float(self.gather(torch.tensor([value], dtype=torch.float64, device=device)).sum())

    @contextmanager
    def agreed(self, what: str, device: torch.device) -> Iterator[None]:
        """Raise on all ranks if one does inside, where they must not wait for one another.

        Args:
            what: the ranks are doing, to be named.
            device: that the group communicates from.

        Yields:
            Nothing.

        Raises:
            ValueError: another rank raised; its own error says why.
        """
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        if self.world_size > 1:
            flags = self.gather(torch.tensor([problem is not None], device=device)).tolist()
            ranks = [rank for rank, flag in enumerate(flags) if flag]
            if ranks and problem is None:
                raise ValueError(f"{what} failed on ranks {ranks}; their own errors say why.")
        if problem is not None:
            raise problem

    def check_equal(self, what: str, value: int, device: torch.device) -> None:
        """See that a number is the same on all ranks.

        Args:
            what: its name.
            value: here.
            device: that the group communicates from.

        Raises:
            ValueError: it differs.
        """
        values = self.gather(torch.tensor([value], device=device)).tolist()
        if len(set(values)) > 1:
            raise ValueError(f"{what} differs between the ranks: {values}; give all of them equal shares.")


def _together(nest: Nest, communicate: Callable[[Tensor], object]) -> Nest:
    """One message for all tensors of a type and device."""
    tensors, layout = pytree.tree_flatten(nest)
    alike: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.device), []).append(index)
    received = list(tensors)
    for indices in alike.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in indices])
        communicate(flat)
        parts = torch.split(flat, [tensors[i].numel() for i in indices])
        for index, part in zip(indices, parts, strict=True):
            received[index] = part.view(tensors[index].shape)
    result: Nest = pytree.tree_unflatten(received, layout)
    return result
