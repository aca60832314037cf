"""Two towers: images and captions meet in one space, where the two of a pair lie closest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.nets.mlp import mlp


class TwoTowers(nn.Module):
    """Cosines between every image and every caption, divided by a learned temperature.

    Args:
        image: the image tower, from (n, ...) to (n, features).
        text: the text tower, from (m, ...) to (m, features).
        temperature: its start; the network learns its logarithm.

    Raises:
        ValueError: the temperature is not positive.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.
    """

    def __init__(self, image: nn.Module, text: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        self.image, self.text = image, text
        self.log_scale = nn.Parameter(-torch.tensor(temperature).log())

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """Images (n, ...) and captions (m, ...) to logits (n, m)."""
        x, y = (
            functional.normalize(self.image(images), dim=1),
            functional.normalize(self.text(captions), dim=1),
        )
        return self.log_scale.exp() * x @ y.T


class BagOfWords(nn.Module):
    """The mean of a caption's word vectors, then a linear map.

    Args:
        vocabulary: number of words.
        width: features of a word.
        features: features of a caption.

    Raises:
        ValueError: a count is below 1.
    """

    def __init__(self, vocabulary: int, width: int, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(check_count("vocabulary", vocabulary), check_count("width", width))
        self.head = nn.Linear(width, check_count("features", features))

    def forward(self, words: Tensor) -> Tensor:
        """Words (m, l) to features (m, features)."""
        return self.head(self.embedding(words).mean(dim=1))  # type: ignore[no-any-return]


def contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the cross entropy of every image among the captions and of every caption among the images.

    ln n at chance, for a batch of n pairs.

    Args:
        logits: (n, n) from :class:`TwoTowers`.
        targets: (n,), the caption of each image: arange(n) for a batch of pairs.

    Returns:
        A scalar.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.
    """
    images = torch.empty_like(targets).scatter_(0, targets, torch.arange(len(targets), device=targets.device))
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, images)) / 2


def two_towers(
    vocabulary: int,
    widths: Sequence[int] = (64, 128, 64),
    *,
    words: int = 32,
    temperature: float = 0.07,
) -> TwoTowers:
    """An MLP for small images beside a bag of words.

    Args:
        vocabulary: number of words.
        widths: units of the image tower; the last is the common space.
        words: features of a word.
        temperature: its start.

    Returns:
        The two towers.
    """
    return TwoTowers(mlp(widths), BagOfWords(vocabulary, words, widths[-1]), temperature)
