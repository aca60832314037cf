"""The processes that train together: one when started plainly, several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from llqr_sam_ref.train.config import MachineConfig

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Args:
        rank: its number.
        count: how many there are.
        device: where it computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this one writes and talks."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of n examples.

        Args:
            n: examples of the whole batch.

        Returns:
            A slice; shares differ by one example at most.
        """
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, condition: bool) -> bool:
        """Whether something holds on any of the processes."""
        if self.count == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in all of them: they need not see the same disk, nor at the same moment.

        Args:
            make: called on the first process only; what it returns or raises is pickled.

        Returns:
            The value.

        Raises:
            Exception: what ``make`` raised, in all processes.
        """
        if self.count == 1:
            return make()
        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome[0] = (make(), None)
            except Exception as error:
                outcome[0] = (None, error)
        dist.broadcast_object_list(outcome, 0)
        value: Value
        value, failure = outcome[0]
        if failure is not None:
            raise failure
        return value

    def spread_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device that a name stands for.

    Args:
        name: auto, cpu, cuda, cuda:1, mps, ...
        local_rank: of this process on its machine, to choose among accelerators.

    Returns:
        The device.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        name = str(torch.accelerator.current_accelerator())
    try:
        device = torch.device(name)
        if device.type != "cpu" and ":" not in name:
            device = torch.device(device.type, local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} cannot be used here ({error}); pass auto or cpu.") from None
    return device


@contextmanager
def started(machine: MachineConfig) -> Iterator[Ranks]:
    """Join the other processes if torchrun started several, and part again.

    Args:
        machine: which device.

    Yields:
        This process among them.

    Raises:
        ValueError: the device does not exist, or sharding is asked of a single process.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    device = device_of(machine.device, int(os.environ.get("LOCAL_RANK", "0")))
    if machine.parallel == "fsdp" and count == 1:
        raise ValueError(
            "parallel='fsdp' shards over several processes; start it under torchrun, or pass parallel='ddp'."
        )
    if count == 1:
        yield Ranks(device=device)
        return
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if joined:
            dist.destroy_process_group()


def parallelized(model: nn.Module, machine: MachineConfig, ranks: Ranks) -> nn.Module:
    """What computes the gradients of all processes: the model itself, DDP around it, or its shards.

    Args:
        model: on the device.
        machine: ddp or fsdp.
        ranks: the processes.

    Returns:
        The module to call; with fsdp ``model`` itself, whose parameters are sharded from now on.
    """
    if ranks.count == 1:
        return model
    if machine.parallel == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for child in model.children():
        parts = list(child) if isinstance(child, (nn.ModuleList, nn.Sequential)) else [child]
        for part in parts:
            if any(True for _ in part.parameters()):
                fully_shard(part)
    fully_shard(model)
    return model
