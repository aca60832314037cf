"""Data sets by name: each is read by a file of its own, when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from llqr_sam_ref.errors import check_choice, unknown_name
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import IGNORED, Batch, Data
from llqr_sam_ref.train.settings import parse

__all__ = ["IGNORED", "Batch", "Data", "load_data"]

IMAGES = ("digits", "idx", "cifar")
LOADERS = {
    "digits": "digits:load",
    "mnist": "idx:load",
    "fashion-mnist": "idx:load",
    "cifar10": "cifar:load",
    "cifar100": "cifar:load",
    "imagenet": "folder:load",
    "modular": "tokens:TableData",
    "text": "tokens:load_text",
    "parallel": "parallel:load",
    "pairs": "pairs:load",
}


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
        ValueError: its name or one of its arguments is unknown, or its files are missing or damaged.
    """
    check_choice("data", config.data, LOADERS)
    module, function = LOADERS[config.data].split(":")
    load: Callable[..., Data] = getattr(import_module(f"{__name__}.{module}"), function)
    given = parse("data_args", config.data_args)
    offered: dict[str, Any] = {"dtype": dtype, "workers": workers}
    parameters = inspect.signature(load).parameters
    known = [name for name in parameters if name not in {"config", "device", *offered}]
    for name in given:
        if name not in known:
            raise ValueError(
                unknown_name("data_args", name, known)
                if known
                else f"data_args={name!r}: data={config.data} takes no arguments."
            )
    if config.holdout and not module.startswith(IMAGES):
        raise ValueError(
            f"holdout={config.holdout} is for images in memory; data={config.data} has a test part."
        )
    try:
        return load(config, device, **{k: v for k, v in offered.items() if k in parameters}, **given)
    except TypeError as error:
        raise ValueError(f"data_args={given} do not fit data={config.data}: {error}.") from error
