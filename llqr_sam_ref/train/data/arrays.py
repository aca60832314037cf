"""Labeled images in memory: on the device when they fit there, else in the host's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.augment import DRAWS, crop_and_flip, cutout
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import Batch, Data, noisy, slices

SHARE_OF_MEMORY = 0.25  # of what is free on an accelerator: the rest is for the model


class ImageData(Data):
    """Images and their classes.

    Channels are standardized with the mean and deviation of the training images.

    Args:
        name: of the data set.
        train: images (n, c, h, w) and classes (n,).
        test: the same.
        classes: how many there are.
        config: subset, augmentation, noise.
        device: where batches are wanted.
        dtype: of a batch's images.

    Raises:
        UserError: images and labels do not fit together, or nothing is left to train on.
    """

    draws = DRAWS

    def __init__(
        self,
        name: str,
        train: tuple[UInt8[Tensor, "n c h w"], Integer[Tensor, " n"]],
        test: tuple[UInt8[Tensor, "m c h w"], Integer[Tensor, " m"]],
        classes: int,
        config: DataConfig,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.config, self.device, self.dtype = name, config, device, dtype
        if config.holdout:
            seen, unseen = _held_out(name, config.holdout, len(train[1]))
            train, test = (train[0][seen], train[1][seen]), (train[0][unseen], train[1][unseen])
        parts = []
        for which, (images, labels) in (("training", train), ("test", test)):
            if len(images) != len(labels):
                raise UserError(f"{name}: {len(images)} {which} images but {len(labels)} labels.")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                span = f"{int(labels.min())} to {int(labels.max())}"
                raise UserError(f"{name}: {which} labels from {span} for {classes} classes.")
            limit = config.train_examples if which == "training" else config.test_examples
            parts.append((images[:limit], labels[:limit].long()))
        (images, labels), (test_images, test_labels) = parts
        self.mean, self.deviation = (m.to(device, dtype) for m in moments(images))
        labels = noisy(labels, classes, config.label_noise)
        home = device if _fits(device, images, test_images) else torch.device("cpu")
        self.images, self.labels = images.to(home), labels.to(home)
        self.test_images, self.test_labels = test_images.to(home), test_labels.to(home)
        self.train_size, self.test_size = len(images), len(test_images)
        _, channels, height, width = images.shape
        self.shape = {
            "num_classes": classes,
            "channels": channels,
            "image_size": height,
            "features": channels * height * width,
        }

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """Augmented, standardized images and their classes."""
        config, uniforms = self.config, uniforms.to(self.device, non_blocking=True)
        images, labels = self._take(self.images, indices), self._take(self.labels, indices)
        if {"crop", "flip"} & set(config.augment):
            padding = config.crop_padding if "crop" in config.augment else 0
            images = crop_and_flip(images, uniforms, padding, flip="flip" in config.augment)
        images = self._standardized(images)
        if "cutout" in config.augment:
            images = cutout(images, uniforms, config.cutout_size, config.cutout_probability)
        return images, labels

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Standardized images and their classes."""
        for part in slices(self.test_size, size, rank, world_size):
            images = self.test_images[part].to(self.device)
            yield self._standardized(images), self.test_labels[part].to(self.device)

    def _take(self, tensor: Tensor, indices: Tensor) -> Tensor:
        return tensor[indices.to(tensor.device)].to(self.device, non_blocking=True)

    def _standardized(self, images: Tensor) -> Tensor:
        return (images.to(self.dtype) - self.mean) / self.deviation


def moments(images: UInt8[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel.

    Args:
        images: all of them; a thousand at a time are widened.

    Returns:
        Two tensors (1, c, 1, 1) in float64; a constant channel has deviation 1.
    """
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in torch.split(images, 1000):
        wide = part.double()
        total += torch.stack((wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))))
    mean, square = total / (images.numel() / images.shape[1])
    deviation = (square - mean**2).clamp(min=0.0).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)


def _held_out(name: str, holdout: int, n: int) -> tuple[slice, slice]:
    """The last examples for the test, the others for training."""
    if holdout >= n:
        raise UserError(f"holdout={holdout} leaves nothing of {name}'s {n} training examples; pass less.")
    return slice(n - holdout), slice(n - holdout, n)


def _fits(device: torch.device, *tensors: Tensor) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(t.numel() * t.element_size() for t in tensors) < SHARE_OF_MEMORY * free
