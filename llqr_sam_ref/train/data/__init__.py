"""Data sets by name: each is read by a file of its own, when it is asked for; the table is in train/sources.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from llqr_sam_ref.errors import UserError, unknown_name
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import IGNORED, Batch, Data
from llqr_sam_ref.train.settings import parse
from llqr_sam_ref.train.sources import SOURCES

__all__ = ["IGNORED", "Batch", "Data", "load_data"]


def load_data(
    config: DataConfig, device: torch.device, dtype: torch.dtype = torch.float32, workers: int = 8
) -> Data:
    """Read a data set.

    Args:
        config: which one, from where, and how.
        device: where batches are wanted.
        dtype: of images.
        workers: threads that decode images.

    Returns:
        The data.

    Raises:
        UserError: one of its arguments is unknown or not allowed, or its files are missing or damaged.
    """
    module, _, function = SOURCES[config.data].place.partition(":")
    load: Callable[..., Data] = getattr(import_module(f"{__name__}.{module}"), function)
    given = parse("data_args", config.data_args)
    offered: dict[str, Any] = {"dtype": dtype, "workers": workers}
    signature = inspect.signature(load)
    known = [name for name in signature.parameters if name not in {"config", "device", *offered}]
    for name in given:
        if name not in known:
            raise UserError(
                unknown_name("data_args", name, known)
                if known
                else f"data_args={name!r}: data={config.data} takes no arguments."
            )
    fitting = {name: value for name, value in offered.items() if name in signature.parameters}
    return load(config, device, **fitting, **given)
