"""Digits and captions: pairs to align, small enough to come with the package.

A caption says which digit it is, whether the strokes are light, normal or heavy, and whether they lie more to the
left, in the middle or to the right: "seven heavy left". 90 captions are possible.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.nets.towers import contrastive_loss
from llqr_sam_ref.optim.likelihood import Categorical, Likelihood
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data import digits
from llqr_sam_ref.train.data.arrays import ImageData
from llqr_sam_ref.train.data.base import Batch, Data, noisy, slices

WORDS = 10 + 3 + 3


class ContrastiveLoss(nn.Module):
    """:func:`contrastive_loss` as a module."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Half the cross entropy of images among captions and of captions among images."""
        return contrastive_loss(logits, targets)


class PairData(Data):
    """Images beside their captions; a batch's targets say that they belong together in order.

    In the test every image is held against all captions that occur, so the accuracy is that of retrieval.

    Args:
        config: subsets; label_noise is the share of training images with the caption of another.
        device: where batches are wanted.
        dtype: of images.
    """

    unit = "sequences"

    def __init__(self, config: DataConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device = config.data, device
        source = digits.load(DataConfig(), torch.device("cpu"), dtype)
        assert isinstance(source, ImageData)
        edges = _terciles(source.images)
        train = _captions(source.images, source.labels, edges)[: config.train_examples]
        test = _captions(source.test_images, source.test_labels, edges)[: config.test_examples]
        self.all, number = torch.unique(torch.cat((train, test)), dim=0, return_inverse=True)
        chosen = noisy(number[: len(train)], len(self.all), config.label_noise)
        self.images = ((source.images - source.mean) / source.deviation)[: len(train)].to(device)
        self.test_images = ((source.test_images - source.mean) / source.deviation)[: len(test)].to(device)
        self.captions, self.all = self.all[chosen].to(device), self.all.to(device)
        self.test_numbers = number[len(train) :].to(device)
        self.train_size, self.test_size = len(train), len(test)
        self.shape = {"vocabulary": WORDS, "features": 64}

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """((images, captions), 0 ... n - 1)."""
        indices = indices.to(self.device)
        targets = torch.arange(len(indices), device=self.device)
        return (self.images[indices], self.captions[indices]), targets

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """((images, all captions), the number of each image's caption)."""
        for part in slices(self.test_size, size, rank, world_size):
            yield (self.test_images[part], self.all), self.test_numbers[part]

    def loss(self, smoothing: float) -> nn.Module:
        """The symmetric contrastive loss; smoothing is not for it."""
        if smoothing:
            raise UserError(f"label_smoothing={smoothing} is not for data=pairs; pass 0.")
        return ContrastiveLoss()

    def likelihood(self) -> Likelihood:
        """A caption drawn for every image and an image for every caption: the loss is the mean over both."""
        return Categorical(outputs=_both_ways, labels=_twice)


def _both_ways(logits: Tensor) -> Tensor:
    """Images among captions above captions among images, (2n, n)."""
    return torch.cat((logits, logits.T))


def _twice(targets: Tensor) -> Tensor:
    return torch.cat((targets, targets))


def _features(images: Tensor) -> Tensor:
    """Ink and its horizontal center, (n, 2)."""
    pixels = images[:, 0].double()
    ink = pixels.sum((1, 2))
    return torch.stack((ink, (pixels.sum(1) * torch.arange(pixels.shape[2])).sum(1) / ink), dim=1)


def _terciles(images: Tensor) -> Tensor:
    return torch.quantile(_features(images), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), dim=0)


def _captions(images: Tensor, labels: Tensor, edges: Tensor) -> Tensor:
    """Three words for every image, (n, 3)."""
    ranks = (_features(images)[None] > edges[:, None]).sum(0)
    return torch.stack((labels, 10 + ranks[:, 0], 13 + ranks[:, 1]), dim=1)


def load(config: DataConfig, device: torch.device, dtype: torch.dtype) -> Data:
    """Digits and captions.

    Args:
        config: subsets and share of wrong captions.
        device: where batches are wanted.
        dtype: of images.

    Returns:
        The data.
    """
    return PairData(config, device, dtype)
