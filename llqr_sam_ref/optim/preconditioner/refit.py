"""One refit of the learned preconditioner: from probes, and curvature products where they are needed, to the new U."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from llqr_sam_ref.config import ClosedForm, LLQRConfig
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.preconditioner.closed_form import refit_closed_form
from llqr_sam_ref.optim.preconditioner.inner_loop import refit_inner_loop
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack


def learn(
    stacks: list[Stack],
    V: Vector,
    terms: float,
    curvature: AbstractContextManager[Callable[[Vector], Vector]] | None,
    config: LLQRConfig,
    ranks: Ranks,
    owners: Ranks,
    own: Own,
    momentum: Callable[[Stack], Vector],
    keep: bool,
) -> None:
    """One refit.

    Args:
        stacks: what is learned; changed in place.
        V: this rank's probes, stacked along the first axis of each parameter's tensor.
        terms: n, that the loss on the whole probe batch adds up.
        curvature: entered by the inner loop alone, which needs it; gives v -> G v, the same on all ranks.
        config: what LLQR does.
        ranks: those whose probes are others than this one's.
        owners: those that learn the same, and share the work on bases.
        own: where counters are saved.
        momentum: gives what lies in a stack's bases, and turns with them, by parameter name.
        keep: whether the stacks keep the one probe in the bases.
    """
    solver = config.solver
    if not stacks:
        return
    if isinstance(solver, ClosedForm):
        m = terms / config.probes * (terms if config.reduction == "sum" else 1)
        refit_closed_form(stacks, V, m, solver, config.every, ranks, owners, own, momentum, keep)
        return
    if config.probes > 1:
        V = {name: ranks.gather(tensor) for name, tensor in V.items()}
    assert curvature is not None
    with curvature as product:
        refit_inner_loop(stacks, V, product, solver, own)
