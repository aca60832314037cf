"""CIFAR-10 and CIFAR-100 from their Python archives, without running what a pickle may contain."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.arrays import ImageData
from llqr_sam_ref.train.data.base import Data
from llqr_sam_ref.train.data.files import MissingDataError, download, find, folder

LAYOUT: dict[str, dict[str, Any]] = {
    "cifar10": {
        "folder": "cifar-10-batches-py",
        "archive": "cifar-10-python.tar.gz",
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
        "labels": b"labels",
        "classes": 10,
        "torchvision": "CIFAR10",
    },
    "cifar100": {
        "folder": "cifar-100-python",
        "archive": "cifar-100-python.tar.gz",
        "train": ("train",),
        "test": ("test",),
        "labels": b"fine_labels",
        "classes": 100,
        "torchvision": "CIFAR100",
    },
}
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR's files consist of and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(content: bytes, name: str, labels: bytes) -> tuple[Tensor, Tensor]:
    """Read one pickled batch.

    Args:
        content: of the file.
        name: of the file, for the error.
        labels: key of the labels.

    Returns:
        Images (n, 3, 32, 32) uint8 and labels (n,).

    Raises:
        UserError: it is damaged or something else.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, classes = np.asarray(batch[b"data"]), np.asarray(batch[labels])
        pixels = torch.from_numpy(images.astype(np.uint8).reshape(-1, 3, 32, 32))
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is not a CIFAR batch: {error}; fetch the archive again.") from error
    return pixels, torch.from_numpy(classes)


def load(config: DataConfig, device: torch.device, dtype: torch.dtype) -> Data:
    """Images of 32 by 32 pixels in 10 or 100 classes.

    Args:
        config: data_path is the archive, the folder that has it, or the unpacked folder.
        device: where batches are wanted.
        dtype: of images.

    Returns:
        The data.

    Raises:
        MissingDataError: files are missing.
    """
    layout = LAYOUT[config.data]
    root = folder(config, f"{layout['archive']} or its unpacked folder")
    download(config, layout["torchvision"])
    reader = _reader(root, layout)
    if reader is None:
        raise MissingDataError(
            f"neither {layout['archive']} nor {layout['folder']}/ is in {root}; fetch the Python version of "
            f"{config.data} there, or pass --download (with torchvision installed)."
        )
    parts = []
    for which in ("train", "test"):
        batches = [read_batch(reader(name), name, layout["labels"]) for name in layout[which]]
        images, labels = zip(*batches, strict=True)
        parts.append((torch.cat(images), torch.cat(labels)))
    return ImageData(config.data, parts[0], parts[1], layout["classes"], config, device, dtype)


def _reader(root: Path, layout: dict[str, Any]) -> Callable[[str], bytes] | None:
    """From a batch's name to its content."""
    unpacked = find((root, root / layout["folder"]), layout["test"]) if root.is_dir() else None
    if unpacked is not None:
        return lambda name: _content(unpacked.parent / name)
    archive = root if root.is_file() else find((root,), (layout["archive"],))
    if archive is None:
        return None
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    contents[Path(member.name).name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} cannot be read: {error}; fetch it again.") from error

    def from_archive(name: str) -> bytes:
        if name not in contents:
            raise UserError(f"{archive} has no {name}; it is truncated or another archive, fetch it again.")
        return contents[name]

    return from_archive


def _content(path: Path) -> bytes:
    if not path.exists():
        raise MissingDataError(f"{path} is missing; unpack the whole archive.")
    return path.read_bytes()
