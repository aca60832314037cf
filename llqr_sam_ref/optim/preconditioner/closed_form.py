"""The closed form of a refit: average what the probes say of the curvature, and take the U that minimizes J there.

With k probes V_j (gradients of the mean loss on micro-batches of m terms; or the gradient of a training step,
k = m = 1) and E the eigenvectors of their averaged Gram matrices, renewed now and then:

    c <- average of (m/k) sum_j (E_Psi^T V_j E_Phi)^{o2},       U = E diag(1/(c + mu)) E^T,

mu a fraction of the mean of c over all weights, or, with c in units of its own mean on every tensor, a number. A
structure keeps of c what it can see: a scalar its mean, a dense block the whole matrix. All averages are
bias-corrected. Tensors carry the blocks of a stack along their first axis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llqr_sam_ref.config import ClosedForm
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.distributed.shards import is_sharded, sum_over_shards
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack
from llqr_sam_ref.optim.structures.two_sided import TwoSided

RIDGE = 1e-7  # of the trace
FLOOR = 1e-2  # of the mean eigenvalue


def refit_closed_form(
    stacks: list[Stack],
    V: Vector,
    m: float,
    solver: ClosedForm,
    every: int,
    ranks: Ranks,
    owners: Ranks,
    own: Own,
    momentum: Callable[[Stack], Vector],
    keep: bool,
) -> None:
    """Update the curvature estimate and take its minimizer.

    A block none of whose parameters has a probe, and one whose probes are not finite, keeps what it remembers.

    Args:
        stacks: what is learned; changed in place.
        V: this rank's k probes, stacked along the first axis of each parameter's tensor.
        m: terms in a micro-batch (m n for a summed loss).
        solver: the clocks of its averages and bases, and its damping.
        every: training steps from one refit to the next.
        ranks: those that have probes.
        owners: those that have the same Gram matrices, and make a share of the bases each.
        own: where counters are saved.
        momentum: gives what lies in a stack's bases, and turns with them, by parameter name.
        keep: whether the stacks keep the probe in the bases.

    Source: the book, thm-random-probe-optimum; E-KFAC, George et al. 2018 (arXiv 1806.03884), section 3.
    """
    if not V:
        return
    k = len(next(iter(V.values())))
    stacks = [stack for stack in stacks if any(name in V for name in stack.names)]
    probes = [stack.gather(V, (k,)) for stack in stacks]
    usable = _usable(stacks, probes, V)
    probes = [
        X if good is None else torch.where(_wide(good, X), X, 0.0)
        for X, good in zip(probes, usable, strict=True)
    ]
    _average_grams(stacks, probes, usable, m / k, solver, every, ranks)
    renewed = _renew_bases(stacks, solver, every, owners, momentum)
    seen = [_in_bases(stack, X) for stack, X in zip(stacks, probes, strict=True)]
    samples = ranks.mean([
        stack.structure.curvature_sample(stack.kept, Y, m / k) for stack, Y in zip(stacks, seen, strict=True)
    ])
    if keep:
        for stack, Y, good in zip(stacks, seen, usable, strict=True):
            stack.seen = poisoned(Y[:, 0], good) if stack.can_ride else None
    gain_decay = decay(solver.curvature_memory, every)
    for stack, sample, good, new in zip(stacks, samples, usable, renewed, strict=True):
        _lerp(stack.kept["c"], sample, average_gain(gain_decay, stack.refits + 1), good)
        stack.counted(stack.refits + 1, stack.bases_drawn + new, own)
    _minimize(stacks, solver)


def _average_grams(
    stacks: list[Stack],
    probes: list[Tensor],
    usable: list[Bool[Tensor, " b"] | None],
    weight: float,
    solver: ClosedForm,
    every: int,
    ranks: Ranks,
) -> None:
    between = refits_between(solver.gram_every, every)
    sampled = [
        (stack, X, good)
        for stack, X, good in zip(stacks, probes, usable, strict=True)
        if stack.structure.bases() and due(stack.refits + 1, between)
    ]
    past = decay(solver.basis_memory, max(solver.gram_every, every))
    grams = ranks.mean([
        _over_shards(stack, stack.structure.gram_samples(X, weight)) for stack, X, _ in sampled
    ])
    for (stack, _, good), samples in zip(sampled, grams, strict=True):
        gain = average_gain(past, times(stack.refits + 1, between))
        for gram, sample in samples.items():
            _lerp(stack.kept[gram], sample, gain, good)


def _over_shards(stack: Stack, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gram matrices of what is cut between ranks: those of the side that is whole add up over its parts."""
    cut = stack.structure.cut if isinstance(stack.structure, TwoSided) else None
    return {
        name: sample
        if cut is None or stack.structure.axis_of(name) == cut.axis
        else sum_over_shards(sample, stack.heads)
        for name, sample in samples.items()
    }


def _renew_bases(
    stacks: list[Stack], solver: ClosedForm, every: int, owners: Ranks, momentum: Callable[[Stack], Vector]
) -> list[bool]:
    """New bases where they are due, each made by one rank, and c carried over to them; says where."""
    between = refits_between(solver.basis_every, every)
    renewed = [due(stack.refits + 1, between) for stack in stacks]
    turning = [stack for stack, now in zip(stacks, renewed, strict=True) if now and stack.structure.bases()]
    renew = iterated_basis if solver.renewal == "iteration" else eigenbasis
    bases: list[dict[str, Tensor]] = [{} for _ in turning]
    for turn, stack in enumerate(turning):
        for shift, (basis, gram) in enumerate(stack.structure.bases().items()):
            mine = owners.portion(len(stack.blocks), turn + shift)
            old = stack.kept[basis]
            bases[turn][basis] = new = torch.zeros_like(old)
            if mine.start < mine.stop:
                new[mine] = renew(stack.kept[gram][mine], old[mine])
    for stack, drawn in zip(turning, owners.assembled(bases), strict=True):
        turns = {basis: E.mT @ stack.kept[basis] for basis, E in drawn.items()}
        stack.kept["c"].copy_(stack.structure.turned(stack.kept["c"], turns))
        riding = momentum(stack)
        if riding:
            stack.write(riding, stack.structure.turned_vectors(stack.gather(riding), turns))
        for basis, E in drawn.items():
            stack.kept[basis].copy_(E)
    return renewed


def _minimize(stacks: list[Stack], solver: ClosedForm) -> None:
    """U at the curvature that is remembered; where none has been seen at all, U stays as it was."""
    curvatures = [stack.kept["c"] for stack in stacks]
    if solver.damping_kind == "per-tensor":
        units = [
            sum_over_shards(stack.structure.trace(c), stack.heads) / stack.weights
            for stack, c in zip(stacks, curvatures, strict=True)
        ]
        seen, mu = (
            known([unit > 0 for unit in units]),
            torch.tensor(solver.damping, dtype=torch.float64, device="cpu"),
        )
        curvatures = [
            torch.div(c, _wide(unit, c), out=stack.rates)
            if there is None
            else c / _wide(torch.where(there, unit, 1.0), c)
            for stack, c, unit, there in zip(stacks, curvatures, units, seen, strict=True)
        ]
    else:
        mu = damping(stacks, solver)
        seen = known([(mu > 0).to(stack.device).reshape(1) for stack in stacks])
        mu, curvatures = torch.where(mu > 0, mu, 1.0), [c.clone() for c in curvatures]
    for stack, c, there in zip(stacks, curvatures, seen, strict=True):
        for name, array in stack.structure.minimizer(c, mu.to(stack.device, stack.dtype)).items():
            kept = stack.kept[name]
            if there is not None:
                torch.where(_wide(there, array), array, kept, out=kept)
            elif array is not kept:
                kept.copy_(array)


def known(masks: list[Bool[Tensor, " b"]]) -> list[Bool[Tensor, " b"] | None]:
    """Masks, or None for each if all are true everywhere: asked on the host alone, where the answer costs no wait."""
    free = all(answers_at_once(mask.device) for mask in masks)
    return [None] * len(masks) if free and bool(torch.cat(masks).all()) else [*masks]


def answers_at_once(device: torch.device) -> bool:
    """Whether a number can be read without waiting for work that was queued before."""
    return device.type == "cpu"


def _usable(stacks: list[Stack], probes: list[Tensor], V: Vector) -> list[Bool[Tensor, " b"] | None]:
    """Which blocks of each stack have probes that are numbers; None for all."""
    masks = []
    for stack, X in zip(stacks, probes, strict=True):
        finite = X.flatten(1).sum(1).isfinite()  # where a sum overflows, so do the squares
        if is_sharded(stack.heads[0]):  # the parts of a tensor go together
            finite = sum_over_shards((~finite).to(stack.dtype), stack.heads) == 0
        here = [any(name in V for name in block.names) for block in stack.blocks]
        masks.append(finite if all(here) else finite & torch.tensor(here, device=finite.device))
    return known(masks)


def _in_bases(stack: Stack, X: Float[Tensor, "b k ..."]) -> Float[Tensor, "b k ..."]:
    """Probes in the bases of their blocks."""
    return stack.structure.in_bases(
        {name: stack.kept[name].unsqueeze(1) for name in stack.structure.bases()}, X
    )


def poisoned(X: Float[Tensor, "b ..."], good: Bool[Tensor, " b"] | None) -> Float[Tensor, "b ..."]:
    """What was zeroed because it is not a number is none again."""
    return X if good is None else torch.where(_wide(good, X), X, torch.nan)


def _lerp(
    kept: Float[Tensor, "b ..."],
    sample: Float[Tensor, "b ..."],
    gain: float,
    good: Bool[Tensor, " b"] | None,
) -> None:
    """Move what is kept towards a sample, where that is good."""
    kept.lerp_(sample, gain if good is None else _wide(good.to(kept.dtype) * gain, kept))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One value per block, with as many axes as another tensor."""
    return values.reshape(-1, *(1,) * (like.ndim - 1)) if values.ndim else values


def damping(stacks: list[Stack], solver: ClosedForm) -> Float[Tensor, ""]:
    """mu, in units of curvature; a relative one is a fraction of the curvature's trace over the number of weights.

    Args:
        stacks: what is learned.
        solver: its damping, and of which kind that is: "relative" or "absolute".

    Returns:
        The number, in float64 on the first stack's device (on the host, if it is absolute).

    Source: the book, chapter 18.
    """
    if solver.damping_kind == "absolute":
        return torch.tensor(solver.damping, dtype=torch.float64, device="cpu")
    traces = [stack.structure.trace(stack.kept["c"]) for stack in stacks]
    wide = torch.cat([trace.to(traces[0].device, torch.float64) for trace in traces])
    trace = sum_over_shards(wide, [head for stack in stacks for head in stack.heads]).sum()
    return solver.damping * trace / sum(stack.weights * len(stack.blocks) for stack in stacks)


def decay(memory: float, steps: int) -> float:
    """What an average remembers after some training steps: (1 - 1/tau)^steps.

    Args:
        memory: tau, its time constant in training steps.
        steps: from one sample to the next.

    Returns:
        The weight of the past at the next sample.

    Source: the book, chapter 18.
    """
    return (1 - 1 / memory) ** steps


def refits_between(steps: int, every: int) -> int:
    """The number of refits that comes closest to a number of training steps, at least one.

    Args:
        steps: from one renewal to the next.
        every: K, training steps between refits.

    Returns:
        The number.

    Source: the book, chapter 18.
    """
    return max(1, round(steps / every))


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


def due(refit: int, every: int) -> bool:
    """Whether refit number ``refit`` (the first is 1) does what is done every so often: at 1, at 2 and at multiples."""
    return refit <= 2 or refit % every == 0


def times(refit: int, every: int) -> int:
    """How often that was done by refit number ``refit``, it included."""
    return min(refit, 2) + max(0, refit // every - 2 // every)


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


def iterated_basis(gram: Float[Tensor, "*b w w"], old: Float[Tensor, "*b w w"]) -> Float[Tensor, "*b w w"]:
    """One step of orthogonal iteration from the old basis towards the eigenvectors; the old basis where gram is 0.

    Args:
        gram: symmetric, positive semidefinite.
        old: basis to start from.

    Returns:
        Orthogonal matrices, their columns in the places of the old ones. The columns are made orthogonal in falling
        order of their Rayleigh quotients: leading directions are found first. A hundredth of the mean eigenvalue is
        added to all: below it directions are not told apart, and rounding does not choose them.

    Source: the book, thm-orthogonal-iteration; Golub and Van Loan 2013, section 8.2.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    X = gram @ old
    order = (old * X).sum(-2).argsort(dim=-1, descending=True, stable=True)[..., None, :].expand_as(X)
    Q = orthonormal_columns((X + FLOOR * trace / gram.shape[-1] * old).gather(-1, order))
    new = torch.empty_like(old).scatter_(-1, order, Q)
    return torch.where(trace > 0, new, old)


def orthonormal_columns(X: Float[Tensor, "*b w w"]) -> Float[Tensor, "*b w w"]:
    """The factor Q of X = Q R, the diagonal of R positive: by Cholesky, X^T X = R^T R and Q = X R^{-1}, in float64.

    The squared condition number enters: with that of ``iterated_basis``, at most 100 w, one pass leaves errors of
    1e-8, below the rounding of float32. Float64 takes a second pass. Much faster than Householder's reflections on
    accelerators, twice as fast on small matrices of the host, and it waits for no device.

    Args:
        X: square matrices.

    Returns:
        Matrices with orthonormal columns; where X is singular, whatever comes out.

    Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm".
    """
    Q = X.to("cpu", torch.float64) if X.device.type == "mps" else X.double()
    for _ in range(2 if X.dtype is torch.float64 else 1):
        R_transposed, _ = torch.linalg.cholesky_ex(Q.mT @ Q)
        Q = torch.linalg.solve_triangular(R_transposed, Q.mT, upper=False).mT
    return Q.to(X)
