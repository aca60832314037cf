"""Vision Transformers (Dosovitskiy et al. 2020): patches as tokens, a class token, blocks, a linear head."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from llqr_sam_ref.errors import UserError, check_count
from llqr_sam_ref.nets.attention import Block


class VisionTransformer(nn.Module):
    """Patches of an image, learned positions, blocks with the norm first, and the class token's logits.

    Args:
        width: features of a token.
        depth: blocks.
        heads: of every attention.
        num_classes: outputs of the head, whose weights start at zero.
        image_size: side of the square image, in pixels.
        patch_size: side of a patch; it divides the image's.
        channels: channels of the image.
        hidden: units of a block's inner layer; None for four times the width.
        dropout: probability on embeddings and on what each part of a block adds.
        attention_dropout: probability on attention weights.

    Raises:
        UserError: the patch does not divide the image, or a count is below 1.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 10,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        hidden: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for argument, value in (("depth", depth), ("num_classes", num_classes), ("channels", channels)):
            check_count(argument, value)
        if check_count("image_size", image_size) % check_count("patch_size", patch_size):
            raise UserError(
                f"patch_size={patch_size} does not divide image_size={image_size}; pass a divisor."
            )
        self.image_size = image_size
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        tokens = (image_size // patch_size) ** 2 + 1
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden or 4 * width, dropout, attention_dropout=attention_dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits.

        Args:
            x: (n, channels, image_size, image_size).

        Returns:
            (n, num_classes).

        Raises:
            UserError: images of another size.
        """
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"images of {tuple(x.shape[-2:])} pixels for image_size={self.image_size}; "
                "build the model with image_size of the data."
            )
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), patches), dim=1)
        tokens = self.dropout(tokens + self.position)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))  # type: ignore[no-any-return]


vit_tiny = partial(VisionTransformer, 192, 12, 3)
