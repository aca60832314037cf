"""The learned preconditioner as the optimizer holds it: blocks of equal shape stacked, applied together.

What is stored lies in the stacks; the entries of each parameter that checkpoints see are views of them, so that
nothing is copied in a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.shards import is_sharded, local_tensors
from llqr_sam_ref.optim.preconditioner.blocks import Block
from llqr_sam_ref.optim.structures import Factors, Shape, Structure

Own = dict[Tensor, dict[str, Any]]
COUNTS = ("refits", "bases_drawn", "riding")


@dataclass(eq=False)
class Stack:
    """Blocks of equal structure, shapes, precision, device and age, handled at once.

    Args:
        blocks: in the order of the first axis.
        structure: of every block.
        kept: stored arrays of U, and the closed form's memory, each with the blocks along the first axis.
        dtype: of everything kept: at least float32.
        device: of everything kept.
        refits: how often these blocks were refitted.
        bases_drawn: how often their bases were drawn.
        riding: whether the base's momentum lies in the bases.
        seen: the last step's gradients in the bases, until the step is made.
        clip_hits: how often the last inner loop clipped each array of each block.
    """

    blocks: tuple[Block, ...]
    structure: Structure
    kept: Factors
    dtype: torch.dtype
    device: torch.device
    refits: int = 0
    bases_drawn: int = 0
    riding: bool = False
    seen: Tensor | None = None
    clip_hits: dict[str, Int[Tensor, " b"]] = field(default_factory=dict)

    @cached_property
    def columns(self) -> list[tuple[tuple[str, ...], Shape]]:
        """The first parameter of every block, the second, and so on: their names, and their shape on this rank."""
        names = zip(*(block.names for block in self.blocks), strict=True)
        return list(zip(names, self.blocks[0].shapes, strict=True))

    @cached_property
    def arrays(self) -> Factors:
        """The stored arrays of U."""
        return {name: self.kept[name] for name in self.structure.array_shapes()}

    @cached_property
    def rates(self) -> Tensor | None:
        """The stored array with one number per entry, where there is one and the curvature has its shape."""
        alike = (self.kept[name] for name in self.structure.scales if name in self.kept)
        return next((array for array in alike if array.shape == self.kept["c"].shape), None)

    @cached_property
    def trainable(self) -> bool:
        """Whether there is something to learn."""
        return any(block.trainable for block in self.blocks)

    @cached_property
    def names(self) -> list[str]:
        """Of all parameters."""
        return [name for block in self.blocks for name in block.names]

    @cached_property
    def can_ride(self) -> bool:
        """Whether there are bases that momentum can lie in without loss."""
        heads = self.heads
        return bool(self.structure.bases()) and "c" in self.kept and all(p.dtype is self.dtype for p in heads)

    @property
    def guards_signs(self) -> bool:
        """Whether the structure that was asked for does."""
        return self.blocks[0].guards_signs

    @property
    def weights(self) -> int:
        """How many weights a block has, those on other ranks included."""
        return sum(p.numel() for p in self.blocks[0].parameters)

    @cached_property
    def heads(self) -> list[Tensor]:
        """The first parameter of each block: the one whose saved state holds the block's tensors."""
        return [block.head for block in self.blocks]

    def gather(self, vector: Vector, leading: tuple[int, ...] = ()) -> Float[Tensor, "b ..."]:
        """The stack of the blocks' entries in a vector of weights.

        Args:
            vector: tensors by parameter name; parameters that it lacks are zero.
            leading: axes before the parameters' shapes, probes for instance.

        Returns:
            The stack, in its precision; a view if there is one block of one parameter.
        """
        columns = []
        for names, shape in self.columns:
            tensors = [vector[name] if name in vector else self._zeros(leading, shape) for name in names]
            stacked = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
            columns.append(stacked.reshape(*stacked.shape[: stacked.ndim - len(shape)], math.prod(shape)))
        joined = columns[0] if len(columns) == 1 else torch.cat(columns, -1)
        return joined.reshape(*joined.shape[:-1], *self.structure.shape).to(self.dtype)

    def scatter(self, X: Float[Tensor, "b ..."]) -> Vector:
        """The tensors by parameter name, views of X."""
        flat = X.flatten(-len(self.structure.shape))
        sizes = [math.prod(shape) for _, shape in self.columns]
        parts = (flat,) if len(sizes) == 1 else torch.split(flat, sizes, -1)
        vector: Vector = {}
        for (names, shape), part in zip(self.columns, parts, strict=True):
            vector.update(zip(names, part.reshape(*part.shape[:-1], *shape).unbind(), strict=True))
        return vector

    def write(self, vector: Vector, X: Float[Tensor, "b ..."]) -> None:
        """Overwrite a vector's tensors with their rows of a stack."""
        rows = self.scatter(X)
        torch._foreach_copy_(list(vector.values()), [rows[name] for name in vector])

    def _zeros(self, leading: tuple[int, ...], shape: Shape) -> Tensor:
        return torch.zeros((*leading, *shape), dtype=self.dtype, device=self.device)

    def apply(self, vector: Vector, *, riding: bool = False) -> Vector:
        """U v on the blocks' parameters, as new tensors; ``riding`` with v in the bases."""
        with torch.autocast(self.device.type, enabled=False):
            X = self.gather(vector)
            S = (self.structure.apply_in_bases if riding else self.structure.apply)(self.arrays, X)
        return self.scatter(S.clone() if S is X else S)

    def in_bases(self, vector: Vector) -> Float[Tensor, "b ..."]:
        """The blocks' entries of a vector, in the bases."""
        with torch.autocast(self.device.type, enabled=False):
            return self.structure.in_bases(self.arrays, self.gather(vector))

    def out_of_bases(self, vector: Vector) -> Float[Tensor, "b ..."]:
        """The blocks' entries of a vector that lies in the bases, as they are outside."""
        with torch.autocast(self.device.type, enabled=False):
            return self.structure.out_of_bases(self.arrays, self.gather(vector))

    def counted(self, refits: int, bases_drawn: int, own: Own) -> None:
        """Set the counters, here and where they are saved."""
        self.refits, self.bases_drawn = refits, bases_drawn
        for head in self.heads:
            own[head].update(refits=refits, bases_drawn=bases_drawn)

    def rides_now(self, riding: bool, own: Own) -> None:
        """Say whether momentum lies in the bases, here and where it is saved."""
        self.riding = riding
        for head in self.heads:
            own[head]["riding"] = int(riding)


def make_stacks(blocks: Iterable[Block], own: Own) -> list[Stack]:
    """Stack blocks of equal kind, and make their entries in ``own`` views of the stacks.

    Entries that are there keep their values; U = I and an empty memory for blocks without, and for blocks whose shape
    has changed.

    Args:
        blocks: what is learned.
        own: entries by the first parameter of each block; changed.

    Returns:
        The stacks.
    """
    together: dict[Any, list[Block]] = {}
    for block in blocks:
        dtype = torch.promote_types(block.head.dtype, torch.float32)
        if not _fits(block, own.get(block.head, {})):  # a pruned or regrown layer begins anew
            own.pop(block.head, None)
        counts = tuple(int(own.get(block.head, {}).get(name, 0)) for name in COUNTS)
        kind = (
            block.structure,
            block.shapes,
            _layout(block.head),
            block.guards_signs,
            dtype,
            block.head.device,
            counts,
            block.trainable,
        )
        together.setdefault(kind, []).append(block)
    stacks = []
    for (structure, _, _, _, dtype, device, (refits, bases_drawn, riding), _), members in together.items():
        kept = structure.identity((len(members),), dtype, device)
        for name, shape in members[0].kept_shapes.items():
            kept.setdefault(name, torch.zeros((len(members), *shape), dtype=dtype, device=device))
        for row, block in enumerate(members):
            entries = own.get(block.head, {})
            for name, stacked in kept.items():
                if name in entries:
                    stacked[row].copy_(local_tensors([entries[name]])[0].reshape(stacked[row].shape))
            own[block.head] = {name: block.placed(name, stacked[row]) for name, stacked in kept.items()}
        stack = Stack(tuple(members), structure, kept, dtype, device)
        stack.counted(refits, bases_drawn, own)
        stack.rides_now(bool(riding), own)
        stacks.append(stack)
    return stacks


def _layout(head: Any) -> Any:
    """How a sharded parameter lies, so that parts of equal parameters share a stack on every rank, or on none."""
    return (tuple(head.shape), head.device_mesh, head.placements) if is_sharded(head) else None


def _fits(block: Block, entries: Mapping[str, Any]) -> bool:
    """Whether what is stored has the shapes that the block has now."""
    wanted = block.saved_shapes()
    return all(tuple(entries[name].shape) == shape for name, shape in wanted.items() if name in entries)


class Preconditioner:
    """U over all parameters: the stacks, and the identity on everything else.

    Args:
        stacks: the learned blocks.
        names: of all parameters that the model owns.
    """

    def __init__(self, stacks: Sequence[Stack], names: Mapping[Tensor, str]) -> None:
        self.stacks = list(stacks)
        learned = {p for stack in stacks for block in stack.blocks for p in block.parameters}
        self.names = {p: name for p, name in names.items() if p in learned}  # in the model's order

    @property
    def waiting(self) -> bool:
        """Whether some trainable blocks have never been refitted."""
        return any(stack.trainable and not stack.refits for stack in self.stacks)

    def learned(self) -> set[Tensor]:
        """The parameters whose U is in the units of a refit; elsewhere it is the identity.

        Where nothing has been refitted yet U is the identity everywhere, and all units are the same.

        Returns:
            All that have a block, but for those that wait for their first refit while others have had theirs.
        """
        ages = {stack.refits > 0 for stack in self.stacks if stack.trainable}
        fresh = [stack for stack in self.stacks if not stack.refits] if ages == {True, False} else []
        return set(self.names) - {p for stack in fresh for block in stack.blocks for p in block.parameters}

    def apply(
        self, vectors: Sequence[Tensor], parameters: Sequence[Tensor], *, riding: bool = False
    ) -> list[Tensor]:
        """U v.

        Args:
            vectors: v, local tensors of at least float32, one for each parameter.
            parameters: of the optimizer; blocks of parameters that are not among them see zeros there.
            riding: whether v lies in the bases where momentum does.

        Returns:
            New tensors of the vectors' shapes; where U is the identity, the vectors themselves.
        """
        vector = {self.names[p]: v for p, v in zip(parameters, vectors, strict=True) if p in self.names}
        S: Vector = {}
        for stack in self.stacks:
            if any(name in vector for name in stack.names):
                S.update(stack.apply(vector, riding=riding and stack.riding))
        return [
            S[self.names[p]].to(v.dtype) if p in self.names else v
            for p, v in zip(parameters, vectors, strict=True)
        ]
