"""One refit of the learned preconditioner: from the probes to the new U, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llqr_sam_ref.config import ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.distributed.shards import sum_over_shards
from llqr_sam_ref.optim.preconditioner.blocks import Vector
from llqr_sam_ref.optim.preconditioner.closed_form import Estimator, average_gain, basis_due
from llqr_sam_ref.optim.preconditioner.inner_loop import AveragedLoop, inner_loop
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack
from llqr_sam_ref.optim.probes.batch import Cost, ProbeBatch, linearized
from llqr_sam_ref.optim.structures import Factors

SIGN_FLOOR = 1e-8


def learn(
    stacks: list[Stack],
    batch: ProbeBatch,
    config: LLQRConfig,
    uniforms: Callable[[tuple[int, ...]], Tensor],
    known: Linearization | None,
    states: Mapping[str, Cost],
    own: Own,
) -> Linearization | None:
    """One refit.

    Args:
        stacks: what is learned; changed in place.
        batch: the probe batch.
        config: what LLQR does.
        uniforms: what gives uniforms of a shape.
        known: the linearization of the last refit, if there was one.
        states: costs on intermediate layers' states (inner loop).
        own: where counters are saved.

    Returns:
        The linearization, to be used again.
    """
    ranks = batch.ranks
    V, terms = batch.gradients(config.probe_vector, uniforms)
    if not stacks:
        return known
    solver = config.solver
    if isinstance(solver, ClosedForm):
        total = terms * ranks.world_size
        scale = total / config.probes * (total if config.reduction == "sum" else 1)
        refit_closed_form(stacks, V, scale, solver, Ranks() if batch.sharded else ranks, own)
        return known
    if config.probes > 1:
        V = {name: ranks.gather(tensor) for name, tensor in V.items()}
    linearization = linearized(known, batch, states)
    refit_inner_loop(stacks, V, batch.product(config, solver, linearization, terms), config, solver, own)
    linearization.release()
    return linearization


def refit_closed_form(
    stacks: list[Stack], V: Vector, scale: float, solver: ClosedForm, ranks: Ranks, own: Own
) -> None:
    """Update the curvature estimate and take its minimizer.

    Args:
        stacks: what is learned; changed in place.
        V: this rank's probes, stacked along the first axis of each parameter's tensor.
        scale: m, terms in a micro-batch (m n for a summed loss).
        solver: the clocks of its averages and bases, and its damping.
        ranks: those that have probes.
        own: where counters are saved.

    Source: the book, thm-random-probe-optimum; E-KFAC, George et al. 2018 (arXiv 1806.03884), section 3.
    """
    k = len(next(iter(V.values())))
    draws = [basis_due(stack.refits + 1, solver.basis_every) for stack in stacks]
    turning = [stack for stack, draw in zip(stacks, draws, strict=True) if draw and _estimator(stack).sides]
    grams = [_estimator(stack).gram_samples(stack.gather(V, (k,)), scale) for stack in turning]
    bases = []
    for stack, sample in zip(turning, _each(grams, ranks.mean), strict=True):
        gain = average_gain(solver.basis_ema, stack.bases_drawn + 1)
        bases.append(_estimator(stack).update_grams(stack.kept, sample, gain))
    for stack, new in zip(turning, _each(bases, ranks.broadcast), strict=True):
        _estimator(stack).turn(stack.kept, new)
    found = [_estimator(stack).sample(stack.kept, stack.gather(V, (k,)), scale) for stack in stacks]
    for stack, seen, draw in zip(stacks, ranks.mean(found), draws, strict=True):
        stack.kept["c"].lerp_(seen, average_gain(solver.curvature_ema, stack.refits + 1))
        stack.counted(stack.refits + 1, stack.bases_drawn + draw, own)
    take_minimizer(stacks, solver)


def take_minimizer(stacks: list[Stack], solver: ClosedForm) -> None:
    """U <- the minimizer at the present curvature; as it was where no curvature has been seen at all.

    Args:
        stacks: what is learned; the arrays of U are changed in place.
        solver: its relative damping is a fraction of the curvature's trace over the number of weights.

    Source: the book, thm-random-probe-optimum.
    """
    if solver.damping_kind == "absolute":
        mu = torch.tensor(solver.damping, dtype=torch.float64)
    else:
        heads = [head for stack in stacks for head in stack.heads]
        traces = [_estimator(stack).traces(stack.kept) for stack in stacks]
        wide = torch.cat([trace.to(traces[0].device, torch.float64) for trace in traces])
        size = sum(p.numel() for stack in stacks for block in stack.parameters for p in block)
        mu = solver.damping * sum_over_shards(wide, heads).sum() / size
    seen = mu > 0
    for stack in stacks:
        damping = torch.where(seen, mu, 1.0).to(stack.device, stack.dtype)
        for name, array in _estimator(stack).minimizer(stack.kept, damping).items():
            stack.kept[name].copy_(torch.where(seen.to(stack.device), array, stack.kept[name]))


def refit_inner_loop(
    stacks: list[Stack],
    probes: Vector,
    product: Callable[[Vector], Vector],
    config: LLQRConfig,
    solver: InnerLoop,
    own: Own,
) -> None:
    """Descend on the relaxed objective from the current U (or the identity), then average.

    Args:
        stacks: what is learned; changed in place.
        probes: g_j, the same on all ranks, stacked along the first axis of each parameter's tensor.
        product: v -> G v on the learned parameters, the same on all ranks.
        config: whose structure says whether signs are guarded.
        solver: its steps, clip and average.
        own: where counters are saved.

    Source: LLQR, arXiv 2605.04230; the book, thm-relaxed-gradients and, for the average, thm-ema-relaxed-step.
    """
    k = len(next(iter(probes.values())))
    loops = []
    for stack in stacks:
        start = stack.arrays
        if not solver.warm_start:
            start = stack.structure.identity((len(stack.parameters),), stack.dtype, stack.device)
        X = stack.gather(probes, (k,))
        make, probe = (inner_loop, X[:, 0]) if k == 1 else (AveragedLoop, X)
        loops.append(make(stack.structure, start, probe, momentum=solver.momentum, clip=solver.clip))
    for _ in range(solver.steps):
        S = [loop.apply() for loop in loops]
        GS = _products(stacks, S, product, k)
        for loop, part, curved in zip(loops, S, GS, strict=True):
            loop.step(curved + solver.damping * part - loop.X, solver.lr)
    guarded = (
        config.structure in {"scalar", "diagonal"} and not solver.positive and not solver.allow_inversion
    )
    for stack, loop in zip(stacks, loops, strict=True):
        arrays = loop.arrays(solver.ema)
        if not solver.warm_start:  # the average is with U, not with where the loop began
            arrays = {n: torch.lerp(a, stack.kept[n], solver.ema) for n, a in loop.arrays().items()}
        if guarded:
            arrays = stack.structure.project(arrays, SIGN_FLOOR)
        for name, array in arrays.items():
            stack.kept[name].copy_(array)
        stack.clip_hits = loop.clip_hits
        stack.counted(stack.refits + 1, 0, own)


def _products(
    stacks: list[Stack], S: list[Tensor], product: Callable[[Vector], Vector], k: int
) -> list[Tensor]:
    """G S, stack by stack; S may have k probes along its second axis."""
    found = []
    for j in range(k):
        s: Vector = {}
        for stack, part in zip(stacks, S, strict=True):
            s.update(stack.group.scatter(part if k == 1 else part[:, j]))
        curved = product(s)
        found.append([stack.gather(curved) for stack in stacks])
    return found[0] if k == 1 else [torch.stack(parts, 1) for parts in zip(*found, strict=True)]


def _estimator(stack: Stack) -> Estimator:
    assert stack.estimator is not None
    return stack.estimator


def _each(dicts: list[Factors], communicate: Callable[[list[Tensor]], list[Tensor]]) -> list[Factors]:
    """Communicate the tensors of several dicts in one message."""
    received = iter(communicate([tensor for entries in dicts for tensor in entries.values()]))
    return [{name: next(received) for name in entries} for entries in dicts]
