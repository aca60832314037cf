"""What is learned of which weights: one parameter as a matrix, or a layer's parameters joined end to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llqr_sam_ref.config import InnerLoop, LLQRConfig
from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.optim.distributed.shards import cut_of, is_sharded, local_tensors, placed_as, placed_beside
from llqr_sam_ref.optim.structures import STRUCTURES, Cut, Shape, Structure, make_structure
from llqr_sam_ref.optim.structures.two_sided import TwoSided


@dataclass(frozen=True, eq=False)
class Block:
    """One structure and the parameters it acts on.

    Args:
        name: of the parameter, or of the layer.
        names: of its parameters in the model, in the order in which they are joined.
        parameters: the parameters.
        shapes: of what this rank holds of them.
        structure: its shape is the block's: a matrix or vector for one parameter, a vector for a layer.
        kept_shapes: names and shapes of the tensors that this rank keeps: the arrays of U, and in closed form the
            memory of the curvature.
        guards_signs: whether the structure that was asked for does.
    """

    name: str
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    shapes: tuple[Shape, ...]
    structure: Structure
    kept_shapes: dict[str, Shape]
    guards_signs: bool

    @property
    def head(self) -> Tensor:
        """The first parameter: the one whose saved state holds the block's tensors."""
        return self.parameters[0]

    @property
    def trainable(self) -> bool:
        """Whether there is something to learn."""
        return any(p.requires_grad for p in self.parameters)

    def saved_shapes(self) -> dict[str, Shape]:
        """What is kept, as the head's saved state has it: whole, where this rank has a part."""
        if not is_sharded(self.head):
            return self.kept_shapes
        return {name: self._whole(name) for name in self.kept_shapes}

    def _whole(self, name: str) -> Shape:
        axis, here, cut = self.structure.axis_of(name), self.kept_shapes[name], cut_in(self.head)
        if axis is None or cut is None:
            return tuple(self.head.shape)
        return (cut.whole // here[-1], *here[-2:]) if axis == cut.axis else here

    def placed(self, name: str, local: Tensor) -> Tensor:
        """What this rank keeps, as the head's saved state has it: sharded where the head is."""
        axis, cut = self.structure.axis_of(name), cut_in(self.head)
        if axis is None or cut is None:
            return placed_as(local, self.head)
        return placed_beside(local, self.head, self._whole(name), cut=axis == cut.axis)


def make_blocks(
    groups: Iterable[Mapping[str, Any]], names: Mapping[Tensor, str], config: LLQRConfig
) -> list[Block]:
    """The blocks that have something to learn, in the order of the groups.

    A weight of more than one axis is a matrix: first axis, all others.

    Args:
        groups: ``param_groups``, each with its ``structure``.
        names: of the parameters in the model; those that have left it are passed over.
        config: what LLQR does: in closed form a block is one parameter; in the inner loop, where the structure joins
            layers, it is all of a layer's parameters in the group's structure, bias first.

    Returns:
        The blocks; parameters with structure="identity" have none, nor have layers that are frozen.

    Raises:
        RuntimeError: no parameter that is to be learned belongs to the model any more.
    """
    together: dict[tuple[str, str], list[Tensor]] = {}
    gone = False
    for group in groups:
        kind = group["structure"] or config.structure
        for parameter in group["params"]:
            gone |= kind != "identity" and parameter not in names
            if kind != "identity" and parameter in names:
                name = names[parameter]
                layer = name.rpartition(".")[0] if _joins_layers(kind, config) else name
                together.setdefault((kind, layer), []).append(parameter)
    if gone and not together and names:
        raise RuntimeError(
            "none of the optimizer's parameters belongs to the model any more: they were replaced, as by "
            "load_state_dict(assign=True) or to_empty(). Build the optimizers anew over model.parameters()."
        )
    return [
        _make_block(name, kind, members, names, config)
        for (kind, name), members in together.items()
        if any(p.requires_grad or p.grad is not None for p in members)
    ]


def _make_block(
    name: str, kind: str, members: list[Tensor], names: Mapping[Tensor, str], config: LLQRConfig
) -> Block:
    members = sorted(members, key=lambda p: names[p].rpartition(".")[2])  # "bias" before "weight"
    shapes = tuple(tuple(p.shape) for p in local_tensors(members))
    joined = (sum(map(math.prod, shapes)),)
    cut = cut_in(members[0])
    structure = make_structure(
        kind,
        joined if _joins_layers(kind, config) else matrix_shape(shapes[0]),
        positive=isinstance(config.solver, InnerLoop) and config.solver.positive,
        max_side=config.max_side,
        wide=config.wide,
        cut=cut,
    )
    if config.closed:
        structure = structure.closed_form()
    memory = structure.memory_shapes() if config.closed else {}
    return Block(
        name,
        tuple(names[p] for p in members),
        tuple(members),
        shapes,
        structure,
        {**structure.array_shapes(), **memory},
        STRUCTURES[kind].guards_signs,
    )


def matrix_shape(shape: Shape) -> Shape:
    """Of the block: (p,) for vectors, (first axis, all others) else: a convolution is (out, in * h * w)."""
    return (math.prod(shape),) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def cut_in(parameter: Tensor) -> Cut | None:
    """Where a parameter is cut as a matrix; None if it is whole, a vector, or cut otherwise."""
    found = cut_of(parameter)
    if found is None or parameter.ndim < 2:
        return None
    axis, parts = found
    return Cut(axis, parameter.shape[axis], parts) if axis == 0 or parameter.ndim == 2 else None


def _joins_layers(kind: str, config: LLQRConfig) -> bool:
    return not config.closed and STRUCTURES[kind].joins_layers


def check_learnable(group: Mapping[str, Any], owned: Iterable[Tensor], config: LLQRConfig) -> None:
    """Check a group's structure, and that it can be learned for the group's parameters.

    Args:
        group: with its ``structure``; "params" may also be names or numbers, which are left alone.
        owned: the parameters of the model.
        config: what LLQR does.

    Raises:
        ValueError: an unknown structure, a parameter of no model, or one that is complex, sparse or sharded.
    """
    structure = group["structure"]
    if structure not in {None, "identity", *STRUCTURES}:
        raise ValueError(unknown_name("structure", structure, ("identity", *STRUCTURES)))
    kind = config.structure if structure is None else structure
    known = {id(p) for p in owned}
    parameters = group.get("params", ())
    for index, entry in enumerate([parameters] if isinstance(parameters, Tensor) else parameters):
        parameter = entry[1] if isinstance(entry, tuple) else entry
        if not isinstance(parameter, Tensor):
            continue
        if parameter.is_complex() or parameter.layout is not torch.strided:
            raise ValueError(f"parameter {index} is complex or sparse; LLQR needs dense real parameters.")
        if kind == "identity":
            continue
        if id(parameter) not in known:
            raise ValueError(
                f"parameter {index} of shape {tuple(parameter.shape)} does not belong to model; give its group "
                "structure='identity', or pass the model that owns it."
            )
        if is_sharded(parameter) and not (STRUCTURES[kind].cuts and config.closed):
            fitting = " or ".join(repr(name) for name, kind in STRUCTURES.items() if kind.cuts)
            raise ValueError(
                f"parameter {index} is sharded, and structure={kind!r} with solver={type(config.solver).__name__} "
                f"needs whole ones; use structure={fitting} with solver=ClosedForm(...)."
            )
        two_sides = is_sharded(parameter) and parameter.ndim > 1 and issubclass(STRUCTURES[kind], TwoSided)
        if two_sides and cut_in(parameter) is None:
            raise ValueError(
                f"parameter {index} has the placements {parameter.placements}, and structure={kind!r} can follow "  # type: ignore[attr-defined]
                "one cut, along the first axis, or along the second of a matrix; use structure='diagonal' for it."
            )
