"""The ranks that train together: one when started plainly, several under torchrun."""

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

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.train.config import MachineConfig

Value = TypeVar("Value")


@dataclass(frozen=True)
class RunRanks(Ranks):
    """This rank among those that train together, with what starting, watching and stopping a run needs of the others.

    Args:
        device: where it computes.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this one writes and talks."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n examples.

        Args:
            n: examples of the whole batch.

        Returns:
            A slice; shares differ by one example at most.
        """
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return self.gather(tensor[None]).sum(0)

    def any(self, condition: bool) -> bool:
        """Whether something holds on any of the ranks."""
        return bool(self.gather(torch.tensor([condition], device=self.device)).any())

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes, on all of them: they need not see the same disk, nor at the same moment.

        Args:
            make: called on the first rank only; what it returns or raises is pickled.

        Returns:
            The value.

        Raises:
            Exception: what ``make`` raised, on all ranks.
        """
        if self.world_size == 1:
            return make()
        outcome: list[Any] = [_tried(make) if self.first else None]
        dist.broadcast_object_list(outcome, 0)
        value: Value
        value, failure = outcome[0]
        if failure is not None:
            raise failure
        return value

    def on_all(self, make: Callable[[], Value]) -> Value:
        """What each rank makes for itself; if one cannot, none goes on to wait for it.

        Args:
            make: called on every rank.

        Returns:
            This rank's value.

        Raises:
            Exception: what ``make`` raised here, or else on the lowest of the ranks where it raised.
        """
        if self.world_size == 1:
            return make()
        value, failure = _tried(make)
        failures: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(failures, failure)
        if failure is not None:
            raise failure
        for elsewhere in failures:
            if elsewhere is not None:
                raise elsewhere
        return value  # type: ignore[no-any-return]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the first one's running statistics."""
        if self.world_size > 1:
            buffers = list(model.buffers())
            for buffer, received in zip(buffers, self.broadcast(buffers), strict=True):
                buffer.copy_(received)


def _tried(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What came out, and what was raised."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device that a name stands for.

    Args:
        name: auto, cpu, cuda, cuda:1, mps, ...
        local_rank: of this process on its machine, to choose among accelerators.

    Returns:
        The device.

    Raises:
        UserError: there is no such device here.
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
        raise UserError(f"device={name!r} cannot be used here ({error}); pass auto or cpu.") from None
    return device


@contextmanager
def started(machine: MachineConfig) -> Iterator[RunRanks]:
    """Join the other processes if torchrun started several, and part again.

    Args:
        machine: which device.

    Yields:
        This rank.

    Raises:
        UserError: the device does not exist, or sharding is asked of a single process.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = device_of(machine.device, int(os.environ.get("LOCAL_RANK", "0")))
    if machine.parallel == "fsdp" and world_size == 1:
        raise UserError(
            "parallel='fsdp' shards over several processes; start it under torchrun, or pass parallel='ddp'."
        )
    if world_size == 1:
        yield RunRanks(device=device)
        return
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield RunRanks(None, dist.get_rank(), dist.get_world_size(), device)
    finally:
        if joined:
            dist.destroy_process_group()


def parallelized(model: nn.Module, machine: MachineConfig, ranks: RunRanks) -> nn.Module:
    """What computes the gradients of all ranks: the model itself, DDP around it, or its shards.

    Args:
        model: on the device.
        machine: ddp or fsdp.
        ranks: all of them.

    Returns:
        The module to call; with fsdp ``model`` itself, whose parameters are sharded from now on.
    """
    if ranks.world_size == 1:
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
