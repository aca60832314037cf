"""Finding a data set's files, and saying how to get them when they are not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import DataConfig


class MissingDataError(UserError):
    """A data set's files are not where they were looked for."""


def folder(config: DataConfig, what: str) -> Path:
    """The folder (or file) that the user named.

    Args:
        config: with data_path.
        what: what should be there, for the error.

    Returns:
        The path.

    Raises:
        MissingDataError: none was named, or it does not exist.
    """
    if config.data_path is None:
        raise MissingDataError(
            f"data={config.data} needs data_path: pass --data-path with the folder of {what}."
        )
    path = Path(config.data_path).expanduser()
    if not path.exists() and not config.download:
        raise MissingDataError(f"data_path={config.data_path} does not exist; it should hold {what}.")
    return path


def find(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of the names in the first folder that has one."""
    names = tuple(names)
    return next((f / n for f in folders for n in names if (f / n).exists()), None)


def download(config: DataConfig, torchvision_name: str) -> None:
    """Fetch a data set into data_path with torchvision, if the user asked for it.

    Args:
        config: with data_path and download.
        torchvision_name: name of the class in torchvision.datasets.

    Raises:
        MissingDataError: torchvision is not installed.
    """
    if not config.download:
        return
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError:
        raise MissingDataError(
            "download=True needs torchvision, which is not installed; `pip install torchvision`, or fetch the "
            "files yourself and pass --data-path."
        ) from None
    for train in (True, False):
        getattr(datasets, torchvision_name)(config.data_path, train=train, download=True)
