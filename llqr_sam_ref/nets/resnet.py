"""Residual networks (He et al. 2015), with the stride of a bottleneck in its 3x3 convolution ("v1.5")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from llqr_sam_ref.errors import check_choice, check_count

Norm = Callable[[int], nn.Module]
GROUP_SIZE = 16  # channels a group when norm="group"


def _norm(name: str) -> Norm:
    check_choice("norm", name, ("batch", "group"))
    return (
        nn.BatchNorm2d
        if name == "batch"
        else lambda channels: nn.GroupNorm(max(1, channels // GROUP_SIZE), channels)
    )


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is the identity where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.branch(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: channels in.
        width: channels out.
        stride: of the first convolution.
        norm: makes the normalization of a number of channels.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__(inputs, width, stride, norm)
        self.conv1, self.norm1 = _conv(inputs, width, 3, stride), norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3), norm(width)

    def branch(self, x: Tensor) -> Tensor:
        """The residual before it is added: (n, c, h, w) -> (n, width, h/stride, w/stride)."""
        return self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))  # type: ignore[no-any-return]


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; four times as many channels leave as the middle has.

    Args:
        inputs: channels in.
        width: channels of the 3x3 convolution.
        stride: of the 3x3 convolution.
        norm: makes the normalization of a number of channels.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> None:
        outputs = width * self.expansion
        super().__init__(inputs, outputs, stride, norm)
        self.conv1, self.norm1 = _conv(inputs, width, 1), norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.norm3 = _conv(width, outputs, 1), norm(outputs)

    def branch(self, x: Tensor) -> Tensor:
        """The residual before it is added: (n, c, h, w) -> (n, 4 width, h/stride, w/stride)."""
        x = relu(self.norm1(self.conv1(x)))
        x = relu(self.norm2(self.conv2(x)))
        return self.norm3(self.conv3(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A stem, stages of residual blocks that halve the image and double the channels, a linear head.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each stage.
        num_classes: outputs of the head.
        stem: "cifar" (3x3 convolution, image kept) or "imagenet" (7x7 stride 2, then 3x3 maximum stride 2).
        norm: "batch" or "group" (16 channels a group: no state, no dependence on the batch).
        width: channels of the first stage.
        channels: channels of the image.
        zero_init: start each block as the identity (last scale of the branch at zero).

    Raises:
        ValueError: an unknown stem or norm, or a count below 1.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 10,
        *,
        stem: str = "cifar",
        norm: str = "batch",
        width: int = 64,
        channels: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_choice("stem", stem, ("cifar", "imagenet"))
        for argument, value in (("num_classes", num_classes), ("width", width), ("channels", channels)):
            check_count(argument, value)
        make_norm = _norm(norm)
        large = stem == "imagenet"
        self.conv = _conv(channels, width, 7 if large else 3, 2 if large else 1)
        self.norm = make_norm(width)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        inputs, stages = width, []
        for index, depth in enumerate(depths):
            check_count("depths", depth)
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(inputs, width * 2**index, stride, make_norm))
                inputs = width * 2**index * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, num_classes)
        self._initialize(zero_init)

    def _initialize(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.norm3 if isinstance(module, Bottleneck) else module.norm2
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w) to logits (n, num_classes)."""
        x = self.pool(relu(self.norm(self.conv(x))))
        return self.head(self.stages(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
