"""MNIST and Fashion-MNIST from their raw IDX files, compressed or not.

A file is two zero bytes, a type, a number of axes, the axes' lengths as big-endian 32-bit integers, the entries.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.arrays import ImageData
from llqr_sam_ref.train.data.base import Data
from llqr_sam_ref.train.data.files import MissingDataError, download, find, folder

UNSIGNED_BYTE = 0x08
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def read_idx(path: Path, axes: int) -> Tensor:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file, gzip-compressed if its name ends in .gz.
        axes: how many it must have.

    Returns:
        A uint8 tensor.

    Raises:
        UserError: the file is damaged, truncated, or not of this kind.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again.") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, axes)):
        raise UserError(f"{path} is not an IDX file of unsigned bytes with {axes} axes; fetch it again.")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise UserError(
            f"{path} has {len(content) - header} entries but announces {shape}; it is truncated, fetch it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def load(config: DataConfig, device: torch.device, dtype: torch.dtype) -> Data:
    """Images of 28 by 28 pixels in ten classes.

    Args:
        config: data_path is the folder of the four files.
        device: where batches are wanted.
        dtype: of images.

    Returns:
        The data.

    Raises:
        MissingDataError: a file is missing.
    """
    kind = TORCHVISION[config.data]
    root = folder(config, "the four IDX files (train-images-idx3-ubyte.gz, ...)")
    download(config, kind)
    parts = []
    for prefix in ("train", "t10k"):
        tensors = []
        for suffix, axes in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
            names = (f"{prefix}-{suffix}.gz", f"{prefix}-{suffix}")
            path = find((root, root / "raw", root / kind / "raw"), names)
            if path is None:
                raise MissingDataError(
                    f"{names[0]} is not in {root}; fetch the four files of {config.data} there, or pass "
                    "--download (with torchvision installed)."
                )
            tensors.append(read_idx(path, axes))
        parts.append((tensors[0].unsqueeze(1), tensors[1]))
    return ImageData(config.data, parts[0], parts[1], 10, config, device, dtype)
