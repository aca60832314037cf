"""What the loop asks of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.optim.likelihood import Likelihood

Batch = tuple[Any, Tensor]  # inputs (a tensor or a tuple of them) and targets
IGNORED = -100  # target of positions that do not count


class Data(ABC):
    """A data set on the device where it is used.

    Attributes:
        name: what it is called.
        unit: what is counted in throughputs, "images" or "sequences".
        train_size: training examples.
        test_size: test examples.
        draws: uniform numbers that a training example needs.
        shape: what a model has to know of it, by the names of the models' arguments.
    """

    name: str
    unit: str = "images"
    train_size: int
    test_size: int
    draws: int = 0
    shape: dict[str, Any]

    def batches(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """An epoch's batches as indices of examples, in an order drawn from the generator.

        Args:
            size: examples in a batch.
            generator: the source of the order.

        Returns:
            Index tensors, as many, and as many examples, in every epoch; what does not fill a batch is left out of
            this one.

        Raises:
            UserError: there are fewer examples than a batch needs.
        """
        if size > self.train_size:
            raise UserError(
                f"batch_size={size} but {self.name} has {self.train_size} training examples; pass at most that."
            )
        order = torch.randperm(self.train_size, generator=generator)
        return list(torch.split(order[: self.train_size // size * size], size))

    @abstractmethod
    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """Training examples on the device, augmented as the uniforms (n, draws) say."""

    @abstractmethod
    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The share of one of ``world_size`` ranks of the test examples, in order."""

    def terms(self, indices: Tensor) -> Tensor | None:
        """How many targets of each training example count; None if the same number everywhere."""
        return None

    def announce(self, indices: Tensor, uniforms: Tensor) -> None:  # noqa: B027  (nothing to do is the rule)
        """Exactly this will be asked of ``train_batch`` soon: a data set that has to read it may begin."""

    def loss(self, smoothing: float) -> nn.Module:
        """The training loss."""
        return nn.CrossEntropyLoss(ignore_index=IGNORED, label_smoothing=smoothing)

    def likelihood(self) -> Likelihood | None:
        """Of the labels, where the loss does not say."""
        return None


def noisy(labels: Tensor, classes: int, share: float) -> Tensor:
    """Labels of which a share is replaced by random ones, always the same ones.

    Args:
        labels: (n,).
        classes: how many there are.
        share: in [0, 1]; a replaced label may hit the right class again.

    Returns:
        (n,).
    """
    if share == 0:
        return labels
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(len(labels), generator=generator) < share
    random = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(replaced, random, labels)


def slices(n: int, size: int, rank: int, world_size: int) -> Iterator[slice]:
    """One rank's slices of at most ``size`` out of n examples, dealt out in turn."""
    starts = range(0, n, size)
    for start in starts[rank::world_size]:
        yield slice(start, min(start + size, n))
