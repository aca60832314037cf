"""Networks have the shapes and parameter counts of the papers they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llqr_sam_ref.nets import ResNet, mlp, resnet18, resnet34, resnet50
from llqr_sam_ref.nets.resnet import BasicBlock, Bottleneck


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "stem", "classes", "count"),
    [
        (resnet18, "imagenet", 1000, 11_689_512),
        (resnet34, "imagenet", 1000, 21_797_672),
        (resnet50, "imagenet", 1000, 25_557_032),
        (resnet18, "cifar", 10, 11_173_962),
        (resnet18, "cifar", 100, 11_220_132),
        (resnet34, "cifar", 10, 21_282_122),
        (resnet50, "cifar", 10, 23_520_842),
    ],
)
def test_resnets_have_the_published_number_of_parameters(
    make: type[ResNet], stem: str, classes: int, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(make(num_classes=classes, stem=stem)) == count  # type: ignore[call-arg]


def test_mlp_counts_and_shapes() -> None:
    net = mlp((784, 512, 512, 10))
    assert parameters(net) == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10 == 669_706
    assert net(torch.randn(2, 28, 28)).shape == (2, 10)
    assert parameters(mlp((3, 4, 2), bias=False)) == 20
    assert not isinstance(net[-1], nn.ReLU)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(("stem", "sizes"), [("cifar", (16, 16, 8)), ("imagenet", (16, 4, 2))])
def test_stages_halve_the_image_and_double_the_channels(
    block: type[BasicBlock] | type[Bottleneck], stem: str, sizes: tuple[int, int, int]
) -> None:
    net = ResNet(block, (1, 2), num_classes=5, stem=stem, width=4, channels=1).eval()
    shapes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    assert net(torch.randn(3, 1, sizes[0], sizes[0])).shape == (3, 5)
    wide = block.expansion * 4
    assert shapes == [(3, wide, sizes[1], sizes[1]), (3, 2 * wide, sizes[2], sizes[2])]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_starts_blocks_as_their_shortcuts(block: type[BasicBlock] | type[Bottleneck]) -> None:
    net = ResNet(block, (2,), width=4, zero_init=True).eval()
    x = torch.rand(2, 4 * block.expansion, 8, 8)
    last = net.stages[0][1]  # type: ignore[index]
    assert torch.equal(last(x), x)
    assert not torch.equal(ResNet(block, (2,), width=4).eval().stages[0][1](x), x)  # type: ignore[index]


def test_group_norm_has_no_state_and_no_mixing_of_examples() -> None:
    net = ResNet(BasicBlock, (1, 1), norm="group", width=16)
    x = torch.randn(4, 3, 8, 8)
    assert not list(net.buffers())
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-6)


def test_bad_networks_are_named() -> None:
    for arguments, message in [
        ({"stem": "cifra"}, "'cifar'"),
        ({"norm": "layer"}, "'batch'"),
        ({"width": 0}, "width=0"),
        ({"num_classes": -1}, "num_classes=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            resnet18(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer"):
        mlp((4,))
    with pytest.raises(ValueError, match="widths=0"):
        mlp((4, 0, 2))
    with pytest.raises(ValueError, match="'tanh'"):
        mlp((4, 2), "tahn")
