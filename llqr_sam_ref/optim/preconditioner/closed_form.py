"""The closed form of a refit: average what the probes say of the curvature, and take the U that minimizes J over it.

With k probes V_j (gradients of the mean loss on micro-batches of m terms) and E the eigenvectors of their Gram
matrices, drawn at refits 1, 2 and every b-th:

    c <- average of (m/k) sum_j (E_Psi^T V_j E_Phi)^{o2},       U = E diag(1/(c + mu)) E^T,

mu a fraction of the mean of c over all weights. A structure keeps of c what it can see: a scalar its mean, a dense
block the whole matrix. All averages are bias-corrected. Tensors carry the blocks of a stack along their first axis.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.config import ClosedForm
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.distributed.shards import sum_over_shards
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack

RIDGE = 1e-7


def refit_closed_form(
    stacks: list[Stack], V: Vector, m: float, solver: ClosedForm, ranks: Ranks, own: Own
) -> None:
    """Update the curvature estimate and take its minimizer.

    Args:
        stacks: what is learned; changed in place.
        V: this rank's k probes, stacked along the first axis of each parameter's tensor.
        m: terms in a micro-batch (m n for a summed loss of n terms).
        solver: the clocks of its averages and bases, and its damping.
        ranks: those that have probes.
        own: where counters are saved.

    Source: the book, thm-random-probe-optimum; E-KFAC, George et al. 2018 (arXiv 1806.03884), section 3.
    """
    k = len(next(iter(V.values())))
    due = [basis_due(stack.refits + 1, solver.basis_every) for stack in stacks]

    turning = [stack for stack, now in zip(stacks, due, strict=True) if now and stack.structure.bases()]
    grams = ranks.mean([stack.structure.gram_samples(stack.gather(V, (k,)), m / k) for stack in turning])
    bases = []
    for stack, samples in zip(turning, grams, strict=True):
        gain = average_gain(solver.basis_ema, stack.bases_drawn + 1)
        for gram, sample in samples.items():
            stack.kept[gram].lerp_(sample, gain)
        named = stack.structure.bases().items()
        bases.append({basis: eigenbasis(stack.kept[gram], stack.kept[basis]) for basis, gram in named})
    for stack, new in zip(turning, ranks.broadcast(bases), strict=True):
        turns = {basis: E.mT @ stack.kept[basis] for basis, E in new.items()}
        stack.kept["c"].copy_(stack.structure.turned(stack.kept["c"], turns))
        for basis, E in new.items():
            stack.kept[basis].copy_(E)

    seen = ranks.mean([
        stack.structure.curvature_sample(stack.kept, stack.gather(V, (k,)), m / k) for stack in stacks
    ])
    for stack, sample, now in zip(stacks, seen, due, strict=True):
        stack.kept["c"].lerp_(sample, average_gain(solver.curvature_ema, stack.refits + 1))
        stack.counted(stack.refits + 1, stack.bases_drawn + now, own)

    mu = damping(stacks, solver)
    curved = mu > 0  # where no curvature has been seen at all, U stays as it was
    for stack in stacks:
        here = torch.where(curved, mu, 1.0).to(stack.device, stack.dtype)
        for name, array in stack.structure.minimizer(stack.kept["c"], here).items():
            stack.kept[name].copy_(torch.where(curved.to(stack.device), array, stack.kept[name]))


def damping(stacks: list[Stack], solver: ClosedForm) -> Float[Tensor, ""]:
    """mu, in units of curvature; a relative one is a fraction of the curvature's trace over the number of weights.

    Args:
        stacks: what is learned.
        solver: its damping, and of which kind that is.

    Returns:
        The number, in float64 on the first stack's device (on the host, if it is absolute).

    Source: the book, chapter 18.
    """
    if solver.damping_kind == "absolute":
        return torch.tensor(solver.damping, dtype=torch.float64, device="cpu")
    traces = [stack.structure.trace(stack.kept["c"]) for stack in stacks]
    wide = torch.cat([trace.to(traces[0].device, torch.float64) for trace in traces])
    trace = sum_over_shards(wide, [head for stack in stacks for head in stack.heads]).sum()
    return (
        solver.damping
        * trace
        / sum(p.numel() for s in stacks for block in s.blocks for p in block.parameters)
    )


def average_gain(decay: float, count: int) -> float:
    """How far a bias-corrected average moves to its count-th sample: (1 - decay)/(1 - decay^count).

    Args:
        decay: beta in [0, 1).
        count: 1 for the first sample, which is then taken whole.

    Returns:
        The gain a of  average <- average + a (sample - average).

    Source: Kingma and Ba 2015 (arXiv 1412.6980), bias correction, written as a recursion.
    """
    return (1 - decay) / (1 - decay**count)


def basis_due(refit: int, basis_every: int) -> bool:
    """Whether refit number ``refit`` (the first is 1) computes bases: at 1, at 2 and at multiples of b."""
    return refit <= 2 or refit % basis_every == 0


def eigenbasis(gram: Float[Tensor, "*b w w"], old: Float[Tensor, "*b w w"]) -> Float[Tensor, "*b w w"]:
    """The eigenvectors of Gram matrices, as columns, eigenvalues rising; the old basis where the matrix is 0.

    Args:
        gram: symmetric, positive semidefinite.
        old: basis to fall back to.

    Returns:
        Orthogonal matrices. Each Gram matrix is divided by its trace first, so that its scale does not matter, and
        gets a diagonal that rises from 1e-7 to 2e-7: where an eigenvalue occurs more than once (directions that no
        gradient has had yet), rounding would choose the vectors, and two machines would train apart.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    ridge = RIDGE * torch.linspace(1, 2, gram.shape[-1], dtype=gram.dtype, device=gram.device)
    scaled = gram / torch.where(trace > 0, trace, 1.0) + torch.diag(ridge)
    return torch.where(trace > 0, torch.linalg.eigh(scaled)[1], old)
