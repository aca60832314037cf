"""One refit of the learned preconditioner: from the probe batch to the new U, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from llqr_sam_ref.config import ClosedForm, LLQRConfig
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.preconditioner.closed_form import refit_closed_form
from llqr_sam_ref.optim.preconditioner.inner_loop import refit_inner_loop
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack
from llqr_sam_ref.optim.probes.batch import ProbeBatch, StateCost, linearized


def learn(
    stacks: list[Stack],
    batch: ProbeBatch,
    config: LLQRConfig,
    uniforms: Callable[[tuple[int, ...]], Tensor],
    known: Linearization | None,
    states: Mapping[str, StateCost],
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
    ranks, solver = batch.ranks, config.solver
    V, terms = batch.gradients(config.probe_vector, uniforms)
    if not stacks:
        return known
    if isinstance(solver, ClosedForm):
        total = terms * ranks.world_size
        m = total / config.probes * (total if config.reduction == "sum" else 1)
        refit_closed_form(stacks, V, m, solver, Ranks() if batch.sharded else ranks, own)
        return known
    if config.probes > 1:
        V = {name: ranks.gather(tensor) for name, tensor in V.items()}
    linearization = linearized(known, batch, states)
    refit_inner_loop(stacks, V, batch.product(config, solver, linearization, terms), solver, own)
    linearization.release()
    return linearization
