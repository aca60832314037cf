"""Pictures beside their captions: what is trained on, what settings are chosen by, and what is reported."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from book.experiments.alignment import captions
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data import idx
from llqr_sam_ref.train.data.arrays import ImageData

TRAIN, VALIDATION, TEST = 1000, 2000, 4000
INK = 0.1  # a brighter pixel belongs to the thing


class Part(NamedTuple):
    """Pictures (n, 196) of 14 by 14 pixels, and the number of what each shows, (n,)."""

    pictures: Tensor
    contents: Tensor


class Data(NamedTuple):
    """All that a run sees.

    Args:
        train: with the right contents; which are wrong is the seed's.
        validation: settings are chosen by it.
        test: looked at by runs with fresh seeds only.
        vectors: of the captions, (contents, wordings, 384).
    """

    train: Part
    validation: Part
    test: Part
    vectors: Tensor


def load(data_path: str, vectors: Tensor) -> Data:
    """The three parts; pictures have mean zero and deviation one over the training part.

    Brightness, width and pattern are each cut at the terciles of the training part.

    Args:
        data_path: folder of Fashion-MNIST's four files.
        vectors: of the captions.

    Returns:
        The data.
    """
    config = DataConfig(data="fashion-mnist", data_path=data_path)
    whole = idx.load(config, torch.device("cpu"), torch.float32)
    assert isinstance(whole, ImageData)
    order = torch.randperm(len(whole.images), generator=torch.Generator().manual_seed(0))
    chosen = order[:TRAIN], order[TRAIN : TRAIN + VALIDATION]
    pairs = [(whole.images[i], whole.labels[i]) for i in chosen]
    pairs.append((whole.test_images[:TEST], whole.test_labels[:TEST]))
    images = [part.float() / 255 for part, _ in pairs]
    edges = torch.quantile(features(images[0]), torch.tensor([1 / 3, 2 / 3]), dim=0)
    small = [avg_pool2d(part, 2).flatten(1) for part in images]
    mean, deviation = small[0].mean(), small[0].std()
    parts = [
        Part(
            (x - mean) / deviation, captions.number(labels, *(features(part)[None] > edges[:, None]).sum(0).T)
        )
        for x, part, (_, labels) in zip(small, images, pairs, strict=True)
    ]
    train, validation, test = parts
    return Data(train, validation, test, vectors)


def features(images: Tensor) -> Tensor:
    """Of pictures (n, 1, 28, 28): how bright the thing is, how wide, how much neighboring pixels differ, (n, 3)."""
    pixels = images[:, 0]
    thing = pixels > INK
    size = thing.sum((1, 2)).clamp(min=1)
    brightness = (pixels * thing).sum((1, 2)) / size
    width = thing.any(1).sum(1).float()
    inner = thing[:, :, 1:] & thing[:, :, :-1]
    pattern = (pixels.diff(dim=2).abs() * inner).sum((1, 2)) / size
    return torch.stack((brightness, width, pattern), 1)


def mismatched(contents: Tensor, share: float, seed: int) -> Tensor:
    """The contents, with a share of the pictures having the caption of another one among them.

    Args:
        contents: of all pictures.
        share: of the pictures.
        seed: decides which.

    Returns:
        The contents that captions speak of; by chance a few of the others' are the same.
    """
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(seed))
    chosen = order[: round(share * len(contents))]
    moved = contents.clone()
    moved[chosen] = contents[chosen.roll(1)]
    return moved


def wordings(count: int, seed: int) -> Tensor:
    """Which wording every picture's caption has, (count,)."""
    return torch.randint(len(captions.WORDINGS), (count,), generator=torch.Generator().manual_seed(seed))


def one_each(contents: Tensor, draw: int) -> Tensor:
    """A picture of each content that occurs, by chance: no two of their captions are the same."""
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(draw))
    order = order[torch.argsort(contents[order], stable=True)]
    arranged = contents[order]
    return order[torch.cat((torch.ones(1, dtype=torch.bool), arranged[1:] != arranged[:-1]))]
