"""SGD's momentum in the bases of U: then one product on each side takes a gradient to its step, not two.

SGD's update is linear in the gradients and the same in every basis. Given E_Psi^T g E_Phi for a gradient it answers
with E_Psi^T M E_Phi, which U scales and turns back; and E_Psi^T g E_Phi is there, where g has just been the probe.
When bases are renewed the momentum turns with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.shards import local_tensors
from llqr_sam_ref.optim.preconditioner.blocks import Block
from llqr_sam_ref.optim.preconditioner.stack import Own, Preconditioner, Stack

BUFFER = "momentum_buffer"


def rides(base: Optimizer) -> bool:
    """Whether a base may be given its gradients in other bases."""
    return type(base) is SGD


def in_bases_of(stack: Stack, base: Optimizer) -> Vector:
    """The momentum that lies in a stack's bases, by parameter name: what must turn when they do."""
    return _momenta(stack, base) if stack.riding else {}


def settle(stacks: Sequence[Stack], base: Optimizer, own: Own, *, riding: bool) -> None:
    """See that momentum lies in the bases, or that none does.

    Args:
        stacks: of U.
        base: whose momentum it is.
        own: where a checkpoint finds which it is.
        riding: whether it should lie in the bases; where there are none, or weights are in half precision, it does
            not.
    """
    for stack in stacks:
        wanted = riding and stack.can_ride
        if stack.riding == wanted:
            continue
        momenta = _momenta(stack, base)
        if momenta:
            stack.write(momenta, (stack.in_bases if wanted else stack.out_of_bases)(momenta))
        stack.rides_now(wanted, own)


def gradients(
    stacks: Sequence[Stack], present: Mapping[Tensor, Tensor], names: Mapping[Tensor, str], *, seen: bool
) -> list[Tensor]:
    """What the base is given: gradients in the bases where momentum lies there, as they are elsewhere.

    Args:
        stacks: of U; what they have kept of a probe is forgotten.
        present: local gradients by parameter, in the order of the result.
        names: of the parameters that have a block.
        seen: whether these gradients were the probe that the stacks have kept.

    Returns:
        One tensor per parameter.
    """
    vector = {names[p]: g for p, g in present.items() if p in names}
    turned: Vector = {}
    for stack in stacks:
        kept, stack.seen = stack.seen, None
        if stack.riding and any(name in vector for name in stack.names):
            Y = stack.in_bases(vector) if kept is None or not seen else kept
            turned.update(stack.scatter(Y))
    return [turned.get(names.get(p, ""), g) for p, g in present.items()]


def leave(before: Preconditioner, now: Sequence[Block], base: Optimizer, own: Own) -> None:
    """Bring the momentum of parameters whose block is gone, or another, out of the bases that they had.

    Args:
        before: U as it was.
        now: the blocks that there are.
        base: whose momentum it is.
        own: where a checkpoint finds which it is.
    """
    there = {block.head: block.structure for block in now}
    for stack in before.stacks:
        momenta = in_bases_of(stack, base)
        left = [
            block
            for block in stack.blocks
            if block.head.requires_grad
            and there.get(block.head) != stack.structure
            and block.names[0] in momenta
        ]
        gone = {block.names[0]: momenta[block.names[0]] for block in left}
        if gone:
            stack.write(gone, stack.out_of_bases(gone))
        for block in left:
            if block.head in own:
                own[block.head]["riding"] = 0


def _momenta(stack: Stack, base: Optimizer) -> Vector:
    found: dict[str, Any] = {
        block.names[0]: base.state.get(block.head, {}).get(BUFFER) for block in stack.blocks
    }
    there = {name: m for name, m in found.items() if isinstance(m, Tensor)}
    return dict(zip(there, local_tensors(list(there.values())), strict=True))
