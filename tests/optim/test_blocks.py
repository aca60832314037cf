"""Blocks cover every trainable weight once, in the shapes that structures want."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llqr_sam_ref.nets.resnet import BasicBlock
from llqr_sam_ref.optim.preconditioner.blocks import group_blocks, make_blocks
from llqr_sam_ref.optim.structures import Dense, Diagonal, Kronecker
from tests.optim._models import Tied, random_vector


class Mixed(nn.Module):
    """A convolution, norms, a linear layer, a bare parameter, a scalar and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicBlock(2, 4)
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.token = nn.Parameter(torch.ones(1, 2, 3))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize("structure", ["scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac"])
@pytest.mark.parametrize("grouping", ["tensor", "layer"])
def test_gathering_and_scattering_are_inverse_and_cover_everything(structure: str, grouping: str) -> None:
    module = Mixed().double()
    v = random_vector(module)
    blocks = make_blocks(module, structure, grouping=grouping, overrides={"head.weight": "dense"})
    back = {}
    for group in group_blocks(blocks):
        X = group.gather(v)
        assert X.shape == (len(group.blocks), *group.structure.shape)
        back.update(group.scatter(X))
        leading = group.gather({n: torch.stack((t, 2 * t)) for n, t in v.items()})
        assert torch.equal(leading[:, 1], 2 * X)
    assert back.keys() == v.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
    assert all(torch.equal(back[n], v[n]) for n in v)
    assert all(back[n].shape == v[n].shape for n in v)
    named = {name: block for block in blocks for name in block.parameters}
    assert isinstance(named["head.weight"].structure, Dense)


def test_weights_are_matrices_and_vectors_are_diagonal() -> None:
    blocks = {block.name: block.structure for block in make_blocks(Mixed(), "kronecker", max_side=20)}
    assert blocks["block.conv1.weight"] == Kronecker((4, 18), max_side=20)
    assert blocks["block.conv2.weight"].array_shapes() == {"Psi": (4, 4)}
    assert blocks["head.bias"] == Diagonal((3,))
    assert blocks["block.norm1.weight"] == Diagonal((4,))
    assert blocks["scale"] == Diagonal((1,))
    assert blocks["token"].shape == (1, 6)
    assert "fixed" not in blocks


def test_layers_join_their_own_parameters_bias_first() -> None:
    blocks = {block.name: block for block in make_blocks(Mixed(), "dense", grouping="layer")}
    assert blocks["head"].parameters == ("head.bias", "head.weight")
    assert blocks["head"].structure == Dense((15,))
    assert blocks["block.conv1"].parameters == ("block.conv1.weight",)
    assert blocks[""].parameters == ("scale", "token")
    two_sided = make_blocks(Mixed(), "kronecker", grouping="layer")
    assert two_sided == make_blocks(Mixed(), "kronecker")


def test_tied_weights_are_one_block_and_equal_shapes_one_group() -> None:
    names = [block.name for block in make_blocks(Tied(), "ekfac")]
    assert names == ["embed.weight", "middle.weight", "middle.bias", "out.bias"]
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    groups = group_blocks(make_blocks(net, "ekfac"))
    assert [len(group.blocks) for group in groups] == [3, 3]


def test_bad_blocks_are_named() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'head.bias'"):
        make_blocks(Mixed(), overrides={"head.bia": "diagonal"})
    with pytest.raises(ValueError, match="'layer'"):
        make_blocks(Mixed(), grouping="layers")
