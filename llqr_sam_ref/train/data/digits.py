"""scikit-learn's 1797 handwritten digits of 8 by 8 pixels: they come with the package."""

from __future__ import annotations

import torch

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.arrays import ImageData
from llqr_sam_ref.train.data.base import Data

TEST_EXAMPLES = 497


def load(config: DataConfig, device: torch.device, dtype: torch.dtype) -> Data:
    """1300 training and 497 test images, always the same ones.

    Args:
        config: subset, augmentation, noise.
        device: where batches are wanted.
        dtype: of images.

    Returns:
        The data.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data=digits needs scikit-learn; `pip install scikit-learn`.") from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)[order]
    classes = torch.from_numpy(labels)[order]
    train, test = slice(TEST_EXAMPLES, None), slice(TEST_EXAMPLES)
    return ImageData(
        "digits", (pixels[train], classes[train]), (pixels[test], classes[test]), 10, config, device, dtype
    )
