"""The learned preconditioner as the optimizer holds it: blocks of equal shape stacked, applied together.

What is stored lies in the stacks; the entries of each parameter that checkpoints see are views of them, so that
nothing is copied in a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llqr_sam_ref.optim.distributed.shards import is_sharded, local_tensors
from llqr_sam_ref.optim.preconditioner.blocks import Group, Vector
from llqr_sam_ref.optim.preconditioner.closed_form import Estimator
from llqr_sam_ref.optim.preconditioner.parts import Part
from llqr_sam_ref.optim.structures import Factors, Structure

Own = dict[Tensor, dict[str, Any]]
COUNTS = ("refits", "bases_drawn")


@dataclass
class Stack:
    """Blocks of equal structure, shape, precision, device and age.

    Args:
        group: the blocks and their structure.
        parameters: the parameters of each block, in its order.
        estimator: of the curvature (closed form); None with the inner loop.
        kept: stored arrays of U, and the estimator's memory, each with the blocks along the first axis.
        dtype: of everything kept: at least float32.
        device: of everything kept.
        refits: how often these blocks were refitted.
        bases_drawn: how often their bases were drawn.
        clip_hits: how often the last inner loop clipped each array of each block.
    """

    group: Group
    parameters: list[tuple[Tensor, ...]]
    estimator: Estimator | None
    kept: Factors
    dtype: torch.dtype
    device: torch.device
    refits: int = 0
    bases_drawn: int = 0
    clip_hits: dict[str, Int[Tensor, " b"]] = field(default_factory=dict)

    @property
    def structure(self) -> Structure:
        """Of every block."""
        return self.group.structure

    @property
    def arrays(self) -> Factors:
        """The stored arrays of U."""
        return {name: self.kept[name] for name in self.structure.array_shapes()}

    @property
    def trainable(self) -> bool:
        """Whether there is something to learn."""
        return any(p.requires_grad for block in self.parameters for p in block)

    @property
    def heads(self) -> list[Tensor]:
        """The first parameter of each block: the one whose saved state holds the block's tensors."""
        return [block[0] for block in self.parameters]

    def gather(self, vector: Vector, leading: tuple[int, ...] = ()) -> Float[Tensor, "b ..."]:
        """The stack of the blocks' entries in a vector of weights; zeros for parameters that it lacks."""
        full = dict(vector)
        for block in self.group.blocks:
            for name, shape in zip(block.parameters, block.shapes, strict=True):
                if name not in full:
                    full[name] = torch.zeros((*leading, *shape), dtype=self.dtype, device=self.device)
        return self.group.gather(full).to(self.dtype)

    def apply(self, vector: Vector) -> Vector:
        """U v on the blocks' parameters, as new tensors."""
        with torch.autocast(self.device.type, enabled=False):
            X = self.gather(vector)
            S = self.structure.apply(self.arrays, X)
        return self.group.scatter(S.clone() if S is X else S)

    def counted(self, refits: int, bases_drawn: int, own: Own) -> None:
        """Set the counters, here and where they are saved."""
        self.refits, self.bases_drawn = refits, bases_drawn
        for head in self.heads:
            own[head].update(zip(COUNTS, (refits, bases_drawn), strict=True))


def make_stacks(parts: Iterable[Part], own: Own) -> list[Stack]:
    """Stack blocks of equal kind, and make their entries in ``own`` views of the stacks.

    Entries that are there keep their values; U = I and an empty memory for blocks without.

    Args:
        parts: the blocks.
        own: entries by the first parameter of each block; changed.

    Returns:
        The stacks.
    """
    together: dict[Any, list[Part]] = {}
    for part in parts:
        head = part.parameters[0]
        dtype = torch.promote_types(head.dtype, torch.float32)
        refits, bases_drawn = (int(own.get(head, {}).get(name, 0)) for name in COUNTS)
        age = refits, bases_drawn, any(p.requires_grad for p in part.parameters)
        together.setdefault((part.block.structure, dtype, head.device, age), []).append(part)
    stacks = []
    for (structure, dtype, device, (refits, bases_drawn, _)), members in together.items():
        fresh = structure.identity((len(members),), dtype, device)
        for name, shape in members[0].shapes().items():
            fresh.setdefault(name, torch.zeros((len(members), *shape), dtype=dtype, device=device))
        for row, part in enumerate(members):
            head = part.parameters[0]
            found = own.get(head, {})
            for name, stacked in fresh.items():
                if name in found:
                    stacked[row].copy_(local_tensors([found[name]])[0].reshape(stacked[row].shape))
            own[head] = {name: placed_as(stacked[row], head) for name, stacked in fresh.items()}
        group = Group(structure, tuple(part.block for part in members))
        parameters = [part.parameters for part in members]
        stack = Stack(group, parameters, members[0].estimator, fresh, dtype, device)
        stack.counted(refits, bases_drawn, own)
        stacks.append(stack)
    return stacks


def placed_as(local: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor, sharded as the parameter is, where it is.

    Args:
        local: what this rank holds.
        parameter: the parameter that it belongs to.

    Returns:
        ``local`` itself for a whole parameter, else a tensor of its type; memory is shared.
    """
    if not is_sharded(parameter):
        return local
    placed: Tensor = type(parameter.data).from_local(
        local.view(parameter.to_local().shape),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return placed


class Preconditioner:
    """U over all parameters: the stacks, and the identity on everything else.

    Args:
        stacks: the learned blocks.
        names: of all parameters that the model owns.
    """

    def __init__(self, stacks: Sequence[Stack], names: Mapping[Tensor, str]) -> None:
        self.stacks = list(stacks)
        learned = {p for stack in stacks for block in stack.parameters for p in block}
        self.names = {p: name for p, name in names.items() if p in learned}  # in the model's order

    def learned(self, parameter: Tensor) -> bool:
        """Whether U is learned on this parameter; elsewhere it is the identity."""
        return parameter in self.names

    def apply(self, vectors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """U v.

        Args:
            vectors: v, local tensors of at least float32, one for each parameter.
            parameters: of the optimizer; blocks of parameters that are not among them see zeros there.

        Returns:
            New tensors of the vectors' shapes; where U is the identity, the vectors themselves.
        """
        vector = {self.names[p]: v for p, v in zip(parameters, vectors, strict=True) if p in self.names}
        found: Vector = {}
        for stack in self.stacks:
            if any(self.names[p] in vector for block in stack.parameters for p in block):
                found.update(stack.apply(vector))
        return [
            found[self.names[p]].to(v.dtype) if p in self.names else v
            for p, v in zip(parameters, vectors, strict=True)
        ]
