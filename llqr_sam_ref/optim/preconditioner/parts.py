"""Which parameters have something to learn, and in which blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llqr_sam_ref.config import CHOICES, InnerLoop, LLQRConfig
from llqr_sam_ref.errors import unknown_name
from llqr_sam_ref.optim.distributed.shards import is_sharded, local_tensors
from llqr_sam_ref.optim.preconditioner.blocks import Block, matrix_shape
from llqr_sam_ref.optim.preconditioner.closed_form import Estimator
from llqr_sam_ref.optim.structures import make_structure

TWO_SIDED = ("kronecker", "ekfac", "separable-ekfac")


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
    if structure not in {None, "identity", *CHOICES["structure"]}:
        raise ValueError(unknown_name("structure", structure, ("identity", *CHOICES["structure"])))
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
        if is_sharded(parameter) and (kind != "diagonal" or not config.closed):
            raise ValueError(
                f"parameter {index} is sharded, and structure={kind!r} with solver={type(config.solver).__name__} "
                "needs whole ones; use structure='diagonal' with solver=ClosedForm(...)."
            )


@dataclass(frozen=True)
class Part:
    """One block before it is stacked.

    Args:
        block: names, shapes, structure.
        parameters: in the block's order.
        closed: whether its U comes from an estimate of the curvature.
    """

    block: Block
    parameters: tuple[Tensor, ...]
    closed: bool

    @property
    def estimator(self) -> Estimator | None:
        """Of the curvature."""
        return Estimator(self.block.structure) if self.closed else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors that the block keeps on this rank."""
        memory = Estimator(self.block.structure).shapes() if self.closed else {}
        return {**self.block.structure.array_shapes(), **memory}

    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same in the parameter's saved state, where what is sharded has the parameter's shape."""
        head, shapes = self.parameters[0], self.shapes()
        return dict.fromkeys(shapes, tuple(head.shape)) if is_sharded(head) else shapes


def make_parts(
    groups: Iterable[Mapping[str, Any]], names: Mapping[Tensor, str], config: LLQRConfig
) -> list[Part]:
    """The blocks that have something to learn, in the order of the groups.

    Args:
        groups: ``param_groups``, each with its ``structure``.
        names: of the parameters in the model.
        config: what LLQR does: in closed form a block is one parameter; in the inner loop scalar, diagonal and dense
            blocks are whole layers, bias first.

    Returns:
        The blocks; parameters with structure="identity" have none, nor have layers that are frozen.
    """
    closed = config.closed
    together: dict[tuple[str, str], list[Tensor]] = {}
    for group in groups:
        kind = group["structure"] or config.structure
        for parameter in group["params"]:
            if kind != "identity":
                name = names[parameter]
                layer = name.rpartition(".")[0] if _joint(kind, closed) else name
                together.setdefault((kind, layer), []).append(parameter)
    parts = []
    for (kind, name), members in together.items():
        if not any(p.requires_grad or p.grad is not None for p in members):
            continue
        members.sort(key=lambda p: names[p].rpartition(".")[2])  # "bias" before "weight"
        shapes = tuple(tuple(p.shape) for p in local_tensors(members))
        shape = (sum(map(math.prod, shapes)),) if _joint(kind, closed) else matrix_shape(shapes[0])
        # In closed form a Kronecker product is the separable U multiplied out: the same matrix.
        structure = make_structure(
            "separable-ekfac" if closed and kind == "kronecker" else kind,
            shape,
            positive=isinstance(config.solver, InnerLoop) and config.solver.positive,
            max_side=config.max_side,
            wide=config.wide,
        )
        block = Block(name, tuple(names[p] for p in members), shapes, structure)
        parts.append(Part(block, tuple(members), closed))
    return parts


def _joint(kind: str, closed: bool) -> bool:
    """Whether a block is a whole layer."""
    return not closed and kind not in TWO_SIDED
