"""Images in folders, one folder per class, as ImageNet comes: decoded by threads ahead of their use.

PATH/train/CLASS/*.JPEG    PATH/val/CLASS/*.JPEG
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llqr_sam_ref.errors import UserError, check_count
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import Batch, Data, slices
from llqr_sam_ref.train.data.files import MissingDataError, folder

SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
Key = tuple[bytes, bytes]  # of a batch: examples and uniforms, since the same examples may be cut otherwise
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in [0, 1]


class FolderData(Data):
    """ImageNet in the authors' way: resized, cropped, mirrored, all by the example's own uniforms.

    Training: both sides 480 or 256 pixels with equal chance (the aspect is not kept), a random window of
    ``size``, a mirror with probability 1/2. Test: both sides 256 for windows of 224, the central window.

    Args:
        root: with the folders train and val.
        config: subsets.
        device: where batches are wanted.
        dtype: of images.
        size: side of the window, in pixels.
        workers: threads that decode.

    Raises:
        MissingDataError: a folder is missing or empty.
    """

    draws = 4

    def __init__(
        self,
        root: Path,
        config: DataConfig,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        size: int = 224,
        workers: int = 8,
    ) -> None:
        self.name, self.device, self.dtype = config.data, device, dtype
        self.size = check_count("size", size)
        classes = sorted(entry.name for entry in os.scandir(_existing(root / "train")) if entry.is_dir())
        self.train = _listed(root / "train", classes)[: config.train_examples]
        self.test = _listed(_existing(root / "val"), classes)[: config.test_examples]
        if not self.train or not self.test:
            raise MissingDataError(f"no images under {root}/train/CLASS/ and {root}/val/CLASS/.")
        self.train_size, self.test_size = len(self.train), len(self.test)
        self.mean = torch.tensor(MEAN, device=device, dtype=dtype).view(1, 3, 1, 1)
        self.deviation = torch.tensor(DEVIATION, device=device, dtype=dtype).view(1, 3, 1, 1)
        self.shape = {
            "num_classes": len(classes),
            "channels": 3,
            "image_size": size,
            "features": 3 * size * size,
        }
        self.pool = ThreadPoolExecutor(max(1, workers))
        self.ahead: dict[Key, list[Future[np.ndarray]]] = {}

    def announce(self, indices: Tensor, uniforms: Tensor) -> None:
        """Begin to decode a batch."""
        key = _key(indices, uniforms)
        if key not in self.ahead:
            self.ahead[key] = self._decode([self.train[i] for i in indices.tolist()], uniforms)

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """Augmented images and their classes."""
        self.announce(indices, uniforms)
        futures = self.ahead.pop(_key(indices, uniforms))
        return self._batch(futures, [self.train[i][1] for i in indices.tolist()])

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Central windows and their classes; the batch after the present one is being decoded."""
        parts = [self.test[part] for part in slices(self.test_size, size, rank, world_size)]
        futures = self._decode(parts[0], None) if parts else []
        for number, part in enumerate(parts):
            now, futures = futures, self._decode(parts[number + 1], None) if parts[number + 1 :] else []
            yield self._batch(now, [label for _, label in part])

    def _decode(self, files: Sequence[tuple[Path, int]], uniforms: Tensor | None) -> list[Future[np.ndarray]]:
        draws = [None] * len(files) if uniforms is None else uniforms.tolist()
        return [
            self.pool.submit(read_image, path, self.size, draw)
            for (path, _), draw in zip(files, draws, strict=True)
        ]

    def _batch(self, futures: list[Future[np.ndarray]], labels: list[int]) -> Batch:
        pixels = torch.from_numpy(np.stack([future.result() for future in futures]))
        images = pixels.to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 255
        return (images - self.mean) / self.deviation, torch.tensor(labels, device=self.device)


def _key(indices: Tensor, uniforms: Tensor) -> Key:
    return indices.numpy().tobytes(), uniforms.numpy().tobytes()


def read_image(path: Path, size: int, draw: Sequence[float] | None) -> np.ndarray:
    """Decode an image, resize it and cut a window out.

    Args:
        path: the file.
        size: side of the window, in pixels.
        draw: four uniforms for scale, row, column and mirror; None for the central window of a test image.

    Returns:
        (size, size, 3), uint8.

    Raises:
        UserError: the file cannot be decoded, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UserError("reading images needs Pillow; `pip install pillow`.") from None
    side = round(size * (480 if draw is not None and draw[0] < 0.5 else 256) / 224)
    try:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except OSError as error:
        raise UserError(f"{path} cannot be decoded: {error}; fetch it again.") from error
    free = side - size
    top, left = (free // 2, free // 2) if draw is None else (int(u * (free + 1)) for u in draw[1:3])
    window: np.ndarray[Any, Any] = np.asarray(resized)[top : top + size, left : left + size]
    return window[:, ::-1] if draw is not None and draw[3] < 0.5 else window


def load(
    config: DataConfig, device: torch.device, dtype: torch.dtype, size: int = 224, workers: int = 8
) -> Data:
    """Images of any size in folders.

    Args:
        config: data_path has the folders train and val.
        device: where batches are wanted.
        dtype: of images.
        size: side of the window that a model sees.
        workers: threads that decode.

    Returns:
        The data.

    Raises:
        MissingDataError: the folders are missing or empty.
    """
    return FolderData(folder(config, "train/CLASS/ and val/CLASS/"), config, device, dtype, size, workers)


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise MissingDataError(f"{path} is missing; images go to train/CLASS/ and val/CLASS/.")
    return path


def _listed(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Files and classes, dealt out over the classes so that the first n are a fair subset."""
    columns = [sorted(p for p in (root / name).glob("*") if p.suffix.lower() in SUFFIXES) for name in classes]
    longest = max((len(column) for column in columns), default=0)
    return [
        (column[row], label)
        for row in range(longest)
        for label, column in enumerate(columns)
        if row < len(column)
    ]
