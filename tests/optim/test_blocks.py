"""Blocks cover every trainable weight once, in the shapes that structures want."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.nets.resnet import BasicBlock
from llqr_sam_ref.optim.preconditioner.blocks import Block, make_blocks
from llqr_sam_ref.optim.preconditioner.stack import make_stacks
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


CONFIGS = {"tensor": LLQRConfig(), "layer": LLQRConfig.published()}


def cut(
    module: nn.Module,
    config: LLQRConfig,
    overrides: Mapping[str, str] | None = None,
    *,
    frozen: bool = False,
) -> list[Block]:
    """The blocks of a module's parameters in one group, and in one group for each that has a structure of its own."""
    overrides = overrides or {}
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters() if p.requires_grad or frozen}
    rest = [p for p, name in names.items() if name not in overrides]
    own = [{"params": [p], "structure": overrides[name]} for p, name in names.items() if name in overrides]
    return make_blocks([{"params": rest, "structure": None}, *own], names, config)


@pytest.mark.parametrize("structure", ["scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac"])
@pytest.mark.parametrize("grouping", ["tensor", "layer"])
def test_gathering_and_scattering_are_inverse_and_cover_everything(structure: str, grouping: str) -> None:
    module = Mixed().double()
    v = random_vector(module)
    blocks = cut(module, CONFIGS[grouping].replace(structure=structure), {"head.weight": "dense"})
    back = {}
    for stack in make_stacks(blocks, {}):
        X = stack.gather(v)
        assert X.shape == (len(stack.blocks), *stack.structure.shape)
        back.update(stack.scatter(X))
        leading = stack.gather({n: torch.stack((t, 2 * t)) for n, t in v.items()})
        assert torch.equal(leading[:, 1], 2 * X)
    assert back.keys() == v.keys() == {n for n, p in module.named_parameters() if p.requires_grad}
    assert all(torch.equal(back[n], v[n]) for n in v)
    assert all(back[n].shape == v[n].shape for n in v)
    named = {name: block for block in blocks for name in block.names}
    assert isinstance(named["head.weight"].structure, Dense)


def test_weights_are_matrices_and_vectors_are_diagonal() -> None:
    config = LLQRConfig.published(structure="kronecker", max_side=20)
    blocks = {block.name: block.structure for block in cut(Mixed(), config, frozen=True)}
    assert blocks["block.conv1.weight"] == Kronecker((4, 18), max_side=20)
    assert blocks["block.conv2.weight"].array_shapes() == {"Psi": (4, 4)}
    assert blocks["head.bias"] == Diagonal((3,))
    assert blocks["block.norm1.weight"] == Diagonal((4,))
    assert blocks["scale"] == Diagonal((1,))
    assert blocks["token"].shape == (1, 6)
    assert "fixed" not in blocks


def test_layers_join_their_own_parameters_bias_first() -> None:
    blocks = {block.name: block for block in cut(Mixed(), LLQRConfig.published(structure="dense"))}
    assert blocks["head"].names == ("head.bias", "head.weight")
    assert blocks["head"].structure == Dense((15,))
    assert blocks["block.conv1"].names == ("block.conv1.weight",)
    assert blocks[""].names == ("scale", "token")
    module = Mixed()
    two_sided = cut(module, LLQRConfig.published(structure="kronecker"))
    assert [block.names for block in two_sided] == [(name,) for name in random_vector(module)]


def test_tied_weights_are_one_block_and_equal_shapes_one_stack() -> None:
    names = [block.name for block in cut(Tied(), LLQRConfig())]
    assert names == ["embed.weight", "middle.weight", "middle.bias", "out.bias"]
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    stacks = make_stacks(cut(net, LLQRConfig()), {})
    assert [len(stack.blocks) for stack in stacks] == [3, 3]


def test_the_sign_guard_goes_with_the_structure_that_was_asked_for() -> None:
    """A diagonal that was asked for is guarded; one that a Kronecker product gives to a bias is not."""
    config = LLQRConfig.published(structure="kronecker")
    guarded = {block.name: block.guards_signs for block in cut(Mixed(), config, {"head.weight": "diagonal"})}
    assert guarded.pop("head")
    assert not any(guarded.values())
