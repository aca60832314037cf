"""Crop, flip and cutout of a whole batch where it lies, every image with an offset of its own.

Functions of the images and of uniform numbers, five for each image: two for the crop, one for the flip, two for
where cutout cuts, a sixth for whether it does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from llqr_sam_ref.errors import UserError

DRAWS = 6
Uniforms = Float[Tensor, "n 6"]


def crop_and_flip(
    images: Num[Tensor, "n c h w"], uniforms: Uniforms, padding: int = 0, *, flip: bool = False
) -> Num[Tensor, "n c h w"]:
    """Shift every image by up to ``padding`` pixels, borders reflected, and mirror every second one.

    As if the image were padded by reflection and a window of the old size cut out; nothing is padded.

    Args:
        images: any type.
        uniforms: columns 0 and 1 choose the offset, column 2 whether to mirror.
        padding: largest shift, less than both sides.
        flip: whether to mirror where the uniform is below a half.

    Returns:
        Images of the same shape and type.

    Raises:
        UserError: the padding is as large as the image.
    """
    n, _, height, width = images.shape
    if padding >= min(height, width):
        raise UserError(
            f"crop_padding={padding} is not less than the {height} by {width} pixels of an image; pass less."
        )
    uniforms = uniforms.to(images.device)
    shift = (uniforms[:, :2] * (2 * padding + 1)).long() - padding
    rows = _reflected(torch.arange(height, device=images.device) + shift[:, :1], height)
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flip:
        columns = torch.where(uniforms[:, 2:3] < 0.5, width - 1 - columns, columns)
    columns = _reflected(columns + shift[:, 1:], width)
    which = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last: (n, h, w, c).
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(positions: Tensor, size: int) -> Tensor:
    """-1 is 1, size is size - 2, as in a mirror that stands on the border pixel."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def cutout(
    images: Float[Tensor, "n c h w"], uniforms: Uniforms, size: int, probability: float
) -> Float[Tensor, "n c h w"]:
    """Blank a square, clipped at the border, in a share of the images.

    Args:
        images: standardized, so that zero is the mean.
        uniforms: columns 3 and 4 choose the center, column 5 whether to cut.
        size: side of the square, in pixels.
        probability: share of images that are cut.

    Returns:
        Images of the same shape.

    Source: DeVries and Taylor 2017 (arXiv 1708.04552).
    """
    _, _, height, width = images.shape
    uniforms = uniforms.to(images.device)
    inside = []
    for column, side in ((3, height), (4, width)):
        start = (uniforms[:, column : column + 1] * side).long() - size // 2
        place = torch.arange(side, device=images.device)
        inside.append((place >= start) & (place < start + size))
    blank = inside[0][:, :, None] & inside[1][:, None, :] & (uniforms[:, 5] < probability)[:, None, None]
    return images.masked_fill(blank[:, None], 0.0)
