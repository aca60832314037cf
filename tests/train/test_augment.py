"""Augmentation of a batch equals padding and cutting every image by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from llqr_sam_ref.train.augment import DRAWS, crop_and_flip, cutout


def images(n: int = 40, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    return torch.arange(n * channels * height * width).view(n, channels, height, width)


def draws(n: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 2, 4])
def test_equals_padding_and_cutting_out(padding: int, *, flip: bool) -> None:
    pictures, u = images(), draws()
    found = crop_and_flip(pictures, u, padding, flip=flip)
    for picture, numbers, result in zip(pictures.numpy(), u.numpy(), found.numpy(), strict=True):
        wide = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        top, left = (int(np.float32(v) * np.float32(2 * padding + 1)) for v in numbers[:2])
        expected = wide[:, top : top + 6, left : left + 5]
        if flip and numbers[2] < 0.5:
            expected = expected[:, :, ::-1]
        np.testing.assert_array_equal(result, expected)


def test_every_image_has_an_offset_of_its_own() -> None:
    same = images(1, 1, 9, 9).expand(500, -1, -1, -1)
    distinct = {
        tuple(picture.flatten().tolist()) for picture in crop_and_flip(same, draws(500), 2, flip=True)
    }
    assert len(distinct) == 2 * 5 * 5


def test_all_offsets_are_equally_likely() -> None:
    u = draws(90000)
    marked = torch.zeros(1, 1, 7, 7, dtype=torch.long)
    marked[..., 3, 3] = 1
    found = crop_and_flip(marked.expand(90000, -1, -1, -1), u, 1)
    counts = found.sum(0)[0][2:5, 2:5]
    assert counts.sum() == 90000
    assert float((counts - 10000).abs().max()) < 5 * 10000**0.5


def test_cutout_blanks_a_square_clipped_at_the_border() -> None:
    u = draws()
    found = cutout(torch.ones(40, 3, 6, 5), u, 4, 0.5)
    for numbers, result in zip(u.tolist(), found, strict=True):
        expected = torch.ones(3, 6, 5)
        if numbers[5] < 0.5:
            top, left = int(numbers[3] * 6) - 2, int(numbers[4] * 5) - 2
            expected[:, max(top, 0) : top + 4, max(left, 0) : left + 4] = 0
        torch.testing.assert_close(result, expected)


def test_no_cutout_at_probability_zero() -> None:
    pictures = torch.randn(4, 1, 6, 6)
    assert torch.equal(cutout(pictures, draws(4), 4, 0.0), pictures)


def test_types_are_kept() -> None:
    assert crop_and_flip(images().to(torch.uint8), draws(), 1).dtype is torch.uint8


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding=5"):
        crop_and_flip(images(), draws(), 5)
