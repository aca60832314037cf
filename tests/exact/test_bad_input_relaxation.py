"""What bad input gets: an error that names the argument and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.config import ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.exact import clock, curvature_estimate, optima, probes, relaxation
from llqr_sam_ref.exact.llqr import HeavyBall, perturbation, refit, start, step_rule, update
from llqr_sam_ref.exact.preconditioner import identity_preconditioner
from llqr_sam_ref.exact.structures import Kronecker, Structure, stored_numbers, structure_for

LAYERS = (((2, 3), (2,)),)
U = identity_preconditioner(LAYERS, "ekfac")
G, g = np.eye(8), np.ones(8)
NAN = np.full(8, np.nan)
CLOSED, INNER = LLQRConfig(probes=2), LLQRConfig.published()

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "unknown structure": (
        lambda: identity_preconditioner(LAYERS, "kroneker"),
        "structure='kroneker'.*'kronecker'",
    ),
    "tensor": (lambda: structure_for("diagonal", (2, 3, 4)), r"shape=\(2, 3, 4\).*reshape"),
    "tensor count": (lambda: stored_numbers("ekfac", ()), r"shape=\(\).*reshape"),
    "vector of another size": (lambda: U.apply(np.ones(7)), r"v has shape \(7,\).*\(8,\)"),
    "probe of another size": (
        lambda: relaxation.relaxed_objective(U, np.ones(7), G),
        r"probes has shape \(7,\).*\(8,\)",
    ),
    "probe with NaN": (lambda: relaxation.relaxed_gradient(U, NAN, G), "probes holds nan"),
    "no probe": (
        lambda: relaxation.relaxed_objective(U, np.ones((0, 8)), G),
        "probes has shape.*pass one probe",
    ),
    "curvature of another size": (
        lambda: relaxation.relaxed_objective(U, g, np.eye(7)),
        "curvature has shape",
    ),
    "asymmetric curvature": (
        lambda: relaxation.relaxed_objective(U, g, np.triu(np.ones((8, 8)))),
        "curvature is not symmetric",
    ),
    "side too wide for the inner loop": (
        lambda: start(LLQRConfig.published(structure="ekfac", max_side=2), np.ones(8), LAYERS),
        "max_side=2 is exceeded by a side of 3.*max_side=None",
    ),
    "wide": (lambda: curvature_estimate.no_curvature([(2, 3)], "ekfac", 1, "rows"), "wide='rows'"),
    "negative damping": (lambda: relaxation.relaxed_objective(U, g, G, -1.0), r"mu=-1\.0.*\[0"),
    "negative steps": (lambda: relaxation.inner_loop(U, g, G, steps=-1), "steps=-1"),
    "negative inner rate": (lambda: relaxation.inner_loop(U, g, G, eta_U=-1e-3), "eta_U=-0.001"),
    "inner momentum one": (lambda: relaxation.inner_loop(U, g, G, beta=1.0), "beta=1.0"),
    "clip zero": (lambda: relaxation.inner_loop(U, g, G, clip=0.0), "clip=0.0"),
    "decay above one": (lambda: relaxation.average(U, U, 1.5), "gamma=1.5"),
    "indefinite U": (
        lambda: relaxation.condition_left(-np.eye(2), np.eye(2)),
        "U is not positive definite",
    ),
    "probabilities": (lambda: probes.sample_labels([[0.5, 0.6]], [0.1]), "probabilities has rows.*softmax"),
    "uniforms": (lambda: probes.sample_labels([[0.5, 0.5]], [1.0]), r"uniforms runs from.*\[0, 1\)"),
    "shards": (
        lambda: probes.micro_batch_gradients(lambda x, y: x, np.ones((5, 1)), np.ones(5), 2),
        "count=2 micro-batches do not partition 5 inputs",
    ),
    "targets": (
        lambda: probes.micro_batch_gradients(lambda x, y: x, np.ones((4, 1)), np.ones(2), 2),
        "4 inputs and 2 targets",
    ),
    "indefinite optimum": (lambda: optima.dense_optimum(-np.eye(2)), "G is not positive definite.*damping"),
    "unreached coordinate": (
        lambda: optima.diagonal_optimum(np.eye(2), np.diag([1.0, 0.0])),
        "C has 0 on its diagonal",
    ),
    "block sizes": (lambda: optima.block_optimum(np.eye(3), (1, 1)), "sizes=.*add up to 2"),
    "filter": (lambda: optima.early_stopping_filter(1.0, 5, -0.1), "a=-0.1"),
    "travel": (lambda: clock.travel_budget(5, 1e-3, 5.0, 1.0), "beta=1.0"),
    "memory": (lambda: clock.memory(0, 0.5), "every=0"),
    "overhead": (lambda: clock.overhead(5, 10, product=-1), "product=-1"),
    "averaging error": (lambda: clock.averaging_error(0.5, 1.0), "memory=0.5"),
    "best memory": (lambda: clock.best_memory(1.0, walk=-1.0), "walk=-1"),
    "average gain": (lambda: curvature_estimate.average_gain(1.0, 3), "decay=1.0"),
    "closed form without damping": (
        lambda: curvature_estimate.minimizer(curvature_estimate.no_curvature([(2,)], "diagonal"), 0.0),
        "mu=0.0",
    ),
    "relative damping": (
        lambda: curvature_estimate.relative_damping(
            curvature_estimate.no_curvature([(2,)], "diagonal"), -0.1
        ),
        "delta=-0.1",
    ),
    "scale": (
        lambda: curvature_estimate.update_curvature(
            curvature_estimate.no_curvature([(2,)], "diagonal"), np.ones((1, 2)), 0.0
        ),
        "scale=0.0",
    ),
    "bases count": (
        lambda: curvature_estimate.update_curvature(
            curvature_estimate.no_curvature([(2, 2)], "ekfac"), np.ones((1, 4)), 1.0, bases=[]
        ),
        "bases holds 0 pairs",
    ),
    "bases shape": (
        lambda: curvature_estimate.update_curvature(
            curvature_estimate.no_curvature([(2, 2)], "ekfac"),
            np.ones((1, 4)),
            1.0,
            bases=[(np.eye(3), np.eye(2))],
        ),
        r"bases holds a matrix of shape \(3, 3\)",
    ),
    "config structure": (lambda: LLQRConfig(structure="eckfac"), "structure='eckfac'.*'ekfac'"),
    "config solver": (lambda: LLQRConfig().replace(solver="cg"), "solver='cg'"),
    "config every": (lambda: LLQRConfig(every=0), "every=0"),
    "config damping": (lambda: ClosedForm(damping=0.0), "damping=0.0"),
    "config nan": (lambda: LLQRConfig.published(damping=float("nan")), "damping=nan"),
    "config clip": (lambda: InnerLoop(clip=-1.0), "clip=-1.0"),
    "momentum": (lambda: HeavyBall(beta=1.0), "beta=1.0"),
    "decay": (lambda: HeavyBall(wd=-0.1), "wd=-0.1"),
    "weights": (lambda: start(CLOSED, np.ones(7), LAYERS), r"w has shape \(7,\)"),
    "number of probes": (
        lambda: refit(CLOSED, start(CLOSED, g, LAYERS), np.ones((3, 8)), 6),
        "probes has 3 rows",
    ),
    "shards of the probe": (
        lambda: refit(CLOSED, start(CLOSED, g, LAYERS), np.ones((2, 8)), 5),
        "5 examples.*2 equal",
    ),
    "NaN in a probe": (
        lambda: refit(CLOSED, start(CLOSED, g, LAYERS), np.full((2, 8), np.nan), 4),
        "probes holds nan",
    ),
    "no curvature": (lambda: refit(INNER, start(INNER, g, LAYERS), g, 4), "curvature=None.*pass a matrix"),
    "gradient": (lambda: update(CLOSED, start(CLOSED, g, LAYERS), NAN, 0.1), "gradient holds nan"),
    "learning rate": (lambda: update(CLOSED, start(CLOSED, g, LAYERS), g, -0.1), "eta=-0.1"),
    "step rule": (lambda: step_rule("rsm", g, g, ((8,),)), "rule='rsm'.*'rms'"),
    "radius": (lambda: perturbation(U, g, -0.1), "rho=-0.1"),
    "norm": (lambda: perturbation(U, g, 0.1, "l2"), "norm='l2'"),
    "dual norm of an indefinite U": (
        lambda: perturbation(
            U.with_arrays([{k: -a for k, a in b.arrays.items()} for b in U.blocks]), g, 0.1, "dual"
        ),
        "v'U v=-8.*positive=True",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_names_the_argument_and_the_remedy(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(ValueError) as error:
        call()
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_the_base_class_has_no_structure() -> None:
    base, X = Structure(), np.ones((2, 2))
    for call in (
        lambda: base.identity((2, 2)),
        lambda: base.apply({}, X),
        lambda: base.pullback({}, X, X),
        lambda: base.to_dense({}, (2, 2)),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert isinstance(Kronecker(), Structure)
