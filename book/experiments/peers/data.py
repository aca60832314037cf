"""What the tasks learn from: scikit-learn's digits, Python's own reference text, and a made-up language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from book.experiments import digits_noise
from book.experiments.digits_walk import ill_scaled
from llqr_sam_ref.train.augment import DRAWS
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.arrays import ImageData
from llqr_sam_ref.train.data.idx import load as load_idx

Batch = tuple[Any, Tensor]  # inputs (a tensor, or a tuple of them) and targets
Draw = Callable[[torch.Generator, int], Batch]
Images = tuple[Tensor, Tensor]

TEXT_LENGTH, CHUNK = 400_000, 2_000  # characters
HELD_OUT = 1_000  # examples of a validation or test set that is generated


@dataclass(frozen=True)
class Data:
    """Batches to train on, and two sets that are not trained on.

    Args:
        draw: a training batch of so many examples, from a generator on the host.
        validation: settings are chosen by it.
        test: looked at by runs with fresh seeds only.
    """

    draw: Draw
    validation: Batch
    test: Batch


def _drawn(inputs: Tensor, targets: Tensor) -> Draw:
    """Batches of stored examples, with replacement."""

    def draw(generator: torch.Generator, size: int) -> Batch:
        chosen = torch.randint(len(inputs), (size,), generator=generator)
        return inputs[chosen], targets[chosen]

    return draw


@cache
def digits() -> tuple[Images, Images, Images]:
    """Training, validation and test images (n, 64) with ink between 0 and 1, and classes (n,)."""
    train, validation, test = ((part.inputs.float(), part.labels) for part in digits_noise.splits())
    return train, validation, test


def ill_scaled_digits() -> Data:
    """Digits whose pixels are shifted by 2 and multiplied by factors between 1/30 and 1."""
    train, validation, test = (
        (ill_scaled(x, torch.Generator().manual_seed(0)), labels) for x, labels in digits()
    )
    return Data(_drawn(*train), validation, test)


def digits_to_copy(side: int) -> Data:
    """Digits enlarged to ``side`` by ``side`` pixels, as input and as target, (n, side^2)."""

    def enlarged(x: Tensor) -> Tensor:
        images = x.view(-1, 1, 8, 8)
        return interpolate(images, size=side, mode="bilinear", align_corners=False).flatten(1).clamp(0, 1)

    train, validation, test = ((y, y) for y in (enlarged(x) for x, _ in digits()))
    return Data(_drawn(*train), validation, test)


def placed(images: Tensor, generator: torch.Generator, side: int, noise: float) -> Tensor:
    """Digits (n, 64) at random places of a canvas, with noise over all of it: (n, 1, side, side)."""
    n, pixel = len(images), torch.arange(8)
    y, x = torch.randint(side - 8 + 1, (2, n, 1, 1), generator=generator)
    canvas = torch.zeros(n, side, side)
    canvas[torch.arange(n)[:, None, None], y + pixel[:, None], x + pixel] = images.view(n, 8, 8)
    return (canvas + noise * torch.randn(canvas.shape, generator=generator))[:, None]


def placed_digits(side: int, noise: float) -> Data:
    """Digits at places and with noise that are drawn anew for every batch; the held-out sets have theirs fixed.

    Args:
        side: of the canvas, in pixels; a digit has 8.
        noise: standard deviation per pixel, where ink is 1.

    Returns:
        The data.
    """
    (images, labels), validation, test = digits()

    def draw(generator: torch.Generator, size: int) -> Batch:
        chosen = torch.randint(len(images), (size,), generator=generator)
        return placed(images[chosen], generator, side, noise), labels[chosen]

    once = torch.Generator().manual_seed(1)
    held_out = ((placed(x, once, side, noise), y) for x, y in (validation, test))
    return Data(draw, next(held_out), next(held_out))


@cache
def characters() -> tuple[Tensor, int]:
    """What Python's ``help`` prints about the language: tokens (n,), one per character, and how many kinds.

    Passages that stand under several headings are kept once, white space is single blanks. The text comes with the
    interpreter; another version of Python has a slightly different one.
    """
    passages = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).split("\n\n")
    text = " ".join(dict.fromkeys(" ".join(passage.split()) for passage in passages))[:TEXT_LENGTH]
    kinds = sorted(set(text))
    number = {character: i for i, character in enumerate(kinds)}
    return torch.tensor([number[character] for character in text]), len(kinds)


def reference_text(context: int) -> Data:
    """Windows of the text and the same shifted by one; of ten chunks one is for validation and one for the test."""
    chunks = torch.split(characters()[0], CHUNK)
    rest = torch.cat([chunk for i, chunk in enumerate(chunks) if i % 10 not in {4, 9}])

    def windows(tokens: Tensor, starts: Tensor) -> Batch:
        here = tokens[starts[:, None] + torch.arange(context + 1)]
        return here[:, :-1].contiguous(), here[:, 1:].contiguous()

    def draw(generator: torch.Generator, size: int) -> Batch:
        return windows(rest, torch.randint(len(rest) - context, (size,), generator=generator))

    def held_out(place: int) -> Batch:
        parts = [windows(c, torch.arange(0, len(c) - context, context)) for c in chunks[place::10]]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    return Data(draw, held_out(4), held_out(9))


WORDS, LONGEST = 24, 8  # words of each language; of the longest sentence
PADDING, BEGIN, END = 0, 1, 2
FIRST_WORD = 3


def translation() -> Data:
    """Sentences of 4 to 8 words to the other language, which says them backwards.

    A word has its partner in the other language, and every second one of those, counted from the end of the source,
    is replaced by the next in the dictionary. Inputs are (source, target so far), targets the next words, padded with
    tokens that do not count.
    """
    partner = torch.randperm(WORDS, generator=torch.Generator().manual_seed(2))

    def draw(generator: torch.Generator, size: int) -> Batch:
        lengths = torch.randint(LONGEST // 2, LONGEST + 1, (size, 1), generator=generator)
        words = torch.randint(WORDS, (size, LONGEST), generator=generator)
        place = torch.arange(LONGEST)
        there = place < lengths
        source = torch.where(there, words + FIRST_WORD, PADDING)
        backwards = words.gather(1, (lengths - 1 - place).clamp(min=0))
        said = partner[(backwards + place % 2) % WORDS] + FIRST_WORD
        ended = torch.where(place == lengths, END, torch.where(there, said, PADDING))
        last = torch.where(lengths == LONGEST, END, PADDING)
        target = torch.cat((ended, last), 1)
        so_far = torch.cat((torch.full((size, 1), BEGIN), target[:, :-1]), 1)
        return (source, so_far), target

    held_out = (draw(torch.Generator().manual_seed(seed), HELD_OUT) for seed in (3, 4))
    return Data(draw, next(held_out), next(held_out))


def fashion(data_path: str) -> Data:
    """Fashion-MNIST's images (n, 1, 28, 28), 10000 training images held out for validation."""

    def load(holdout: int) -> ImageData:
        config = DataConfig(data="fashion-mnist", data_path=str(Path(data_path)), holdout=holdout)
        data = load_idx(config, torch.device("cpu"), torch.float32)
        assert isinstance(data, ImageData)
        return data

    whole = load(0)
    data = load(whole.train_size // 6)

    def draw(generator: torch.Generator, size: int) -> Batch:
        chosen = torch.randint(data.train_size, (size,), generator=generator)
        return data.train_batch(chosen, torch.zeros(size, DRAWS))

    def standardized(images: Tensor) -> Tensor:
        return ((images.double() - data.mean.double()) / data.deviation.double()).float()

    return Data(
        draw,
        (standardized(data.test_images), data.test_labels),
        (standardized(whole.test_images), whole.test_labels),
    )
