"""Which weights a structure acts on: one parameter as a matrix, or a layer's parameters joined end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.errors import check_choice, unknown_name
from llqr_sam_ref.optim.structures import Structure, TwoSided, make_structure

Vector = dict[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """One structure and the parameters it acts on.

    Args:
        name: of the parameter or the layer.
        parameters: their names in the model, in the order in which they are joined.
        shapes: their shapes.
        structure: its shape is the block's: a matrix or vector for one parameter, a vector for a layer.
    """

    name: str
    parameters: tuple[str, ...]
    shapes: tuple[Shape, ...]
    structure: Structure

    def gather(self, vector: Mapping[str, Tensor]) -> Float[Tensor, "*block"]:
        """The block's entries of a vector of weights.

        Args:
            vector: tensors by parameter name; leading axes beyond the parameters' shapes are kept.

        Returns:
            A view where one parameter makes the block, else a new tensor.
        """
        parts = []
        for name, shape in zip(self.parameters, self.shapes, strict=True):
            tensor = vector[name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], -1))
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return joined.reshape(*joined.shape[:-1], *self.structure.shape)

    def scatter(self, X: Float[Tensor, "*block"]) -> Vector:
        """The tensors by parameter name whose ``gather`` is X: views of X."""
        flat = X.flatten(-len(self.structure.shape))
        parts = torch.split(flat, [math.prod(shape) for shape in self.shapes], -1)
        named = zip(self.parameters, self.shapes, parts, strict=True)
        return {name: part.reshape((*part.shape[:-1], *shape)) for name, shape, part in named}


@dataclass(frozen=True)
class Group:
    """Blocks of equal structure and shape, stacked along a first axis and handled at once.

    Args:
        structure: of all of them.
        blocks: in the order of the first axis.
    """

    structure: Structure
    blocks: tuple[Block, ...]

    def gather(self, vector: Mapping[str, Tensor]) -> Float[Tensor, "b ..."]:
        """The stack of the blocks' entries; a view if there is one block."""
        parts = [block.gather(vector) for block in self.blocks]
        return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)

    def scatter(self, X: Float[Tensor, "b ..."]) -> Vector:
        """The tensors by parameter name, views of X."""
        return {
            name: part
            for block, x in zip(self.blocks, X, strict=True)
            for name, part in block.scatter(x).items()
        }


def make_blocks(
    module: nn.Module,
    structure: str = "kronecker",
    *,
    grouping: str = "tensor",
    positive: bool = False,
    max_side: int | None = None,
    wide: str = "identity",
    overrides: Mapping[str, str] | None = None,
) -> list[Block]:
    """Blocks for every trainable parameter of a module, tied parameters once.

    A weight of more than one axis is a matrix (first axis, all others); vectors get a diagonal where the
    structure has two sides.

    Args:
        module: whose parameters.
        structure: a name of ``make_structure``.
        grouping: "tensor", a block a parameter; "layer", one block for all parameters that a submodule owns
            itself, bias first, for "scalar", "diagonal" and "dense" (the authors' arrays).
        positive: see Structure.
        max_side: see TwoSided.
        wide: see TwoSided.
        overrides: structures by parameter name; such a parameter is a block of its own.

    Returns:
        Blocks in the order of ``module.named_parameters()``; a layer stands where its first parameter does.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("grouping", grouping, ("tensor", "layer"))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    overrides = overrides or {}
    for name in overrides:
        if name not in parameters:
            raise ValueError(unknown_name("overrides", name, parameters))

    def make(kind: str, shape: Shape) -> Structure:
        return make_structure(kind, shape, positive=positive, max_side=max_side, wide=wide)

    joint = grouping == "layer" and not isinstance(make(structure, (1, 1)), TwoSided)
    owned: dict[str, list[str]] = {}
    for name in parameters:
        layer = name.rpartition(".")[0]
        owned.setdefault(layer if joint and name not in overrides else f"{name} alone", []).append(name)
    blocks = []
    for key, names in owned.items():
        names.sort(key=lambda name: name.rpartition(".")[2])  # "bias" before "weight"
        shapes = tuple(tuple(parameters[name].shape) for name in names)
        kind = overrides.get(names[0], structure)
        if joint and names[0] not in overrides:
            shape: Shape = (sum(math.prod(s) for s in shapes),)
            blocks.append(Block(key, tuple(names), shapes, make(kind, shape)))
        else:
            blocks.append(Block(names[0], tuple(names), shapes, make(kind, matrix_shape(shapes[0]))))
    return blocks


def matrix_shape(shape: Shape) -> Shape:
    """Of the block: (p,) for vectors, (first axis, all others) else: a convolution is (out, in * h * w)."""
    return (math.prod(shape),) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def group_blocks(blocks: Sequence[Block]) -> list[Group]:
    """Blocks of equal structure and shape together, in order of first appearance."""
    found: dict[Structure, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.structure, []).append(block)
    return [Group(structure, tuple(members)) for structure, members in found.items()]
