"""Run a function on several gloo processes of this machine and collect what every rank returns."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

SECONDS = 60  # a rank that waits for one that will never come is ended after so long
FORKED = "forkserver" in multiprocessing.get_all_start_methods()
if FORKED:  # the modules that take long are imported once, in a process that all ranks are forked from
    multiprocessing.set_forkserver_preload([
        "pytest",
        "sklearn.datasets",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
        "llqr_sam_ref.train.plots",
        "llqr_sam_ref.train.run",
    ])


def run_on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """``function(rank, *arguments)`` on every rank; it must be defined at the top level of a module."""
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(
            _work,
            args=(ranks, folder, function, arguments),
            nprocs=ranks,
            join=False,
            daemon=True,
            start_method="forkserver" if FORKED else "spawn",
        )
        end = time.monotonic() + SECONDS
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() >= end:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {ranks} ranks took more than {SECONDS} s")
        return [torch.load(Path(folder) / f"result{rank}", weights_only=False) for rank in range(ranks)]


def sharded(model: nn.Sequential) -> nn.Module:
    """A model whose parameters two ranks hold a part of each (FSDP2), layer by layer."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Any) -> Tensor:
    """A copy of a tensor, gathered where it is sharded."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


def _work(
    rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=SECONDS),
    )
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result{rank}")
    finally:
        dist.destroy_process_group()
