"""Wide residual networks (Zagoruyko and Komodakis 2016): few layers, many channels, norms first."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.errors import UserError, check_count, check_number


class WideBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); the shortcut is a 1x1 convolution where shapes change.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution and of the shortcut.
        dropout: probability between the two convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        )
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.dropout = nn.Dropout(dropout)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        active = functional.relu(self.norm1(x))
        branch = self.conv2(self.dropout(functional.relu(self.norm2(self.conv1(active)))))
        return branch + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of (depth - 4)/6 blocks, a final norm, a linear head.

    Args:
        depth: layers with weights, 6 n + 4.
        widen: the stages have 16, 32 and 64 times this many channels.
        num_classes: outputs of the head.
        channels: channels of the image.
        dropout: probability inside every block.

    Raises:
        UserError: depth is not 6 n + 4, or a count or probability is out of range.
    """

    def __init__(
        self, depth: int, widen: int, num_classes: int = 10, *, channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for argument, value in (("widen", widen), ("num_classes", num_classes), ("channels", channels)):
            check_count(argument, value)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        if check_count("depth", depth, low=10) % 6 != 4:
            raise UserError(f"depth={depth} is not 6 n + 4; pass 10, 16, 22, 28, 34, 40, ...")
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        inputs, blocks = 16, []
        for stage, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for position in range((depth - 4) // 6):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(WideBlock(inputs, outputs, stride, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w) to logits (n, num_classes)."""
        x = functional.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


wide_resnet28_10 = partial(WideResNet, 28, 10)
