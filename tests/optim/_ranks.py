"""Run a function on several gloo processes of this machine and collect what every rank returns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """``function(rank, *arguments)`` on every rank; it must be defined at the top level of a module."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, args=(ranks, folder, function, arguments), nprocs=ranks)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"result{rank}", weights_only=False) for rank in range(ranks)]


def _work(
    rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result{rank}")
    finally:
        dist.destroy_process_group()
