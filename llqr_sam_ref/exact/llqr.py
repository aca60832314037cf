"""LLQR and LLQR+SAM, step by step, as pure functions: what any implementation must reproduce.

One training step from weights w and gradient g, learning rate eta, decay wd, around a base optimizer whose update
from a gradient v is base(v): here heavy ball, m <- beta m + v, base(v) = m, or v + beta m with Nesterov's look-ahead.

    if a refit is due:       U <- refit at w, or by g      ClosedForm, or InnerLoop and its average
    with SAM around it:      g <- gradient at w + rho U g/|U g|
    acts_on "update":        M <- base(g),  S <- rule(U M, M),  w <- w - eta (S + wd w)
    acts_on "gradient":      S <- rule(U g, g),                 w <- w - eta base(S + wd w)

The last line is the authors' order; the one above it, with a fixed root mean square of S, is the default.
``training_step`` is this rule. Flat vectors everywhere; ``layers`` says how they split into arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from llqr_sam_ref.config import CHOICES, ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.errors import check_choice, check_count, check_number
from llqr_sam_ref.exact._arrays import check_vector
from llqr_sam_ref.exact.bases import Bases
from llqr_sam_ref.exact.clock import decay, refits_between
from llqr_sam_ref.exact.curvature_estimate import (
    CurvatureEstimate,
    in_own_units,
    minimizer,
    no_curvature,
    relative_damping,
    update_curvature,
)
from llqr_sam_ref.exact.geometry import Learned, ascent_step
from llqr_sam_ref.exact.preconditioner import Preconditioner, identity_preconditioner
from llqr_sam_ref.exact.relaxation import Curvature, average, curvature_product, guard_signs, inner_loop
from llqr_sam_ref.exact.structures import STRUCTURES, Layers, Shape, entries


@dataclass(frozen=True)
class HeavyBall:
    """The base optimizer: m <- beta m + v, and the direction m, or v + beta m with Nesterov's look-ahead.

    Args:
        beta: heavy-ball momentum, 0 <= beta < 1.
        nesterov: whether the direction is v + beta m instead of m.
        wd: weight decay, in units of the gradient per weight.

    Raises:
        ValueError: beta outside [0, 1) or a negative decay.

    Source: Polyak 1964; Sutskever et al. 2013; the buffer starts at zero.
    """

    beta: float = 0.9
    nesterov: bool = True
    wd: float = 0.0

    def __post_init__(self) -> None:
        check_number("beta", self.beta, low=0.0, high=1.0, open_high=True)
        check_number("wd", self.wd, low=0.0)


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a step reads and writes.

    Args:
        w: weights, flat (d,).
        U: preconditioner; the identity until the first refit.
        m: momentum buffer (d,).
        curvature: the closed form's memory; None with the inner loop.
        shapes: of the arrays, in flat order.
        steps: number of training steps taken.
        last_refit: value of ``steps`` at the last refit, -1 before the first.
    """

    w: Float[np.ndarray, " d"]
    U: Preconditioner
    m: Float[np.ndarray, " d"]
    curvature: CurvatureEstimate | None
    shapes: tuple[Shape, ...]
    steps: int = 0
    last_refit: int = -1


def start(config: LLQRConfig, w: ArrayLike, layers: Layers) -> State:
    """The state before the first step.

    Args:
        config: the settings of LLQR.
        w: weights, flat (d,).
        layers: for each layer the shapes of its arrays, in flat order.

    Returns:
        The state with U = I, zero momentum, no curvature.

    Raises:
        ValueError: weights that do not fit the shapes, or are not finite; a side wider than ``max_side`` with
            the inner loop.

    Source: the book, chapter 21.
    """
    closed = config.closed
    widest = max((max(s) for layer in layers for s in layer if len(s) == 2), default=0)
    exceeded = (
        config.max_side is not None and widest > config.max_side and STRUCTURES[config.structure].two_sided
    )
    if exceeded and not closed:
        raise ValueError(
            f"max_side={config.max_side} is exceeded by a side of {widest}, and the exact version has full sides only "
            "in the inner loop; pass max_side=None."
        )
    U = identity_preconditioner(
        layers,
        config.structure,
        per_layer=not closed,
        positive=isinstance(config.solver, InnerLoop) and config.solver.positive,
    )
    shapes = tuple(tuple(shape) for layer in layers for shape in layer)
    w = check_vector("w", w, U.size)
    memory = no_curvature(shapes, config.structure, config.max_side, config.wide) if closed else None
    return State(w, U, np.zeros_like(w), memory, shapes)


def refit_due(config: LLQRConfig, state: State) -> bool:
    """Whether no refit has happened yet in the current period of ``every`` steps.

    Args:
        config: the settings of LLQR.
        state: the state before the step.

    Returns:
        True at steps 0, every, 2 every, ..., and later as long as the refit is overdue.
    """
    return state.steps // config.every > state.last_refit // config.every


def refit(
    config: LLQRConfig,
    state: State,
    probes: Float[np.ndarray, "k d"],
    examples: int = 1,
    curvature: Curvature | None = None,
    bases: list[Bases] | None = None,
) -> State:
    """Learn U anew at the present weights.

    Args:
        config: the settings of LLQR.
        state: the state before the refit.
        probes: k gradients of the mean loss, over m = n/k examples each, against the labels of
            ``probe_vector``; with "step" the one gradient g of the training step.
        examples: n, examples in the whole probe batch; with probe_vector="step" it is not known, and counts as 1.
        curvature: G of the mean loss over the probe batch (inner loop only), as a matrix or a product.
        bases: eigenbases to take instead of computing them (closed form only).

    Returns:
        The state with the new U.

    Raises:
        ValueError: probes of another number or shape, a batch they do not divide, or a missing curvature.

    Source: the book, chapters 16 and 18; LLQR, arXiv 2605.04230.
    """
    probes = np.atleast_2d(probes)
    check_count("examples", examples)
    if len(probes) != config.probes or examples % config.probes:
        raise ValueError(
            f"probes has {len(probes)} rows from {examples} examples; "
            f"pass the gradients of {config.probes} equal shards."
        )
    summed = examples if config.reduction == "sum" else 1
    solver = config.solver
    if isinstance(solver, ClosedForm):
        terms = 1 if config.probe_vector == "step" else examples / config.probes * summed
        return _refit_closed(config, solver, state, probes, terms, bases)
    if curvature is None:
        raise ValueError("curvature=None, but an InnerLoop needs G; pass a matrix or a product v -> G v.")
    multiply = curvature_product(curvature, size=state.U.size)
    origin = state.U if solver.warm_start else state.U.identity()
    new = inner_loop(
        origin,
        probes,
        lambda v: summed * multiply(v),
        solver.damping,
        steps=solver.steps,
        eta_U=solver.lr,
        beta=solver.momentum,
        clip=solver.clip,
    )
    U = average(state.U, new, solver.ema)
    if STRUCTURES[config.structure].guards_signs and not solver.positive and not solver.allow_inversion:
        U = guard_signs(U)
    return replace(state, U=U, last_refit=state.steps)


def _refit_closed(
    config: LLQRConfig,
    solver: ClosedForm,
    state: State,
    probes: Float[np.ndarray, "k d"],
    scale: float,
    bases: list[Bases] | None,
) -> State:
    assert state.curvature is not None
    memory = update_curvature(
        state.curvature,
        probes,
        scale,
        curvature_ema=decay(solver.curvature_memory, config.every),
        basis_ema=decay(solver.basis_memory, max(solver.gram_every, config.every)),
        gram_every=refits_between(solver.gram_every, config.every),
        basis_every=refits_between(solver.basis_every, config.every),
        iterate=solver.renewal == "iteration",
        bases=bases,
    )
    return replace(state, U=_best(solver, state.U, memory), curvature=memory, last_refit=state.steps)


def _best(solver: ClosedForm, before: Preconditioner, memory: CurvatureEstimate) -> Preconditioner:
    """The minimizer at this curvature; where none has been seen, U stays as it was."""
    if solver.damping_kind == "per-tensor":
        new = minimizer(in_own_units(memory), solver.damping)
        seen = [estimate.trace > 0 for estimate in memory.estimates]
        return Preconditioner(
            tuple(
                block if known else old
                for block, old, known in zip(new.blocks, before.blocks, seen, strict=True)
            )
        )
    mu = solver.damping if solver.damping_kind == "absolute" else relative_damping(memory, solver.damping)
    return before if mu == 0 else minimizer(memory, mu)


def step_rule(
    rule: str, S: Float[np.ndarray, " d"], v: Float[np.ndarray, " d"], shapes: tuple[Shape, ...]
) -> Float[np.ndarray, " d"]:
    """Set the length of S = U v.

    "rms": S sqrt(d)/|S|; "rms-per-tensor": the same array by array; "graft": S |v|/|S|; "none": S.
    Zero stays zero. Array by array, with s the root mean square of the largest, the step is
    S/sqrt(mean(S^2) + eps s^2): what rounding alone keeps from zero (the bias before a batch normalization) stays
    small.

    Args:
        rule: one of the four.
        S: preconditioned vector U v, flat (d,).
        v: the vector that U was applied to, flat (d,).
        shapes: of the arrays, in flat order.

    Returns:
        The step, before the learning rate.

    Raises:
        ValueError: an unknown rule.

    Source: the book, chapter 21; grafting: Agarwal et al. 2020 (arXiv 2002.11803).
    """
    check_choice("rule", rule, CHOICES["step_rule"])
    if rule == "none":
        return S
    if rule == "graft":
        return _with_length(S, float(np.linalg.norm(v)))
    if rule == "rms":
        return _with_length(S, math.sqrt(S.size))
    parts = np.split(S, np.cumsum([entries(shape) for shape in shapes])[:-1])
    squares = [float(np.mean(part**2)) for part in parts]
    floor = np.finfo(np.float64).eps * max(squares)
    if floor == 0:
        return S
    return np.concatenate([part / math.sqrt(s + floor) for part, s in zip(parts, squares, strict=True)])


def _with_length(S: Float[np.ndarray, " d"], length: float) -> Float[np.ndarray, " d"]:
    present = float(np.linalg.norm(S))
    return S if present == 0 else S * (length / present)


def update(
    config: LLQRConfig, state: State, gradient: ArrayLike, eta: float, base: HeavyBall | None = None
) -> State:
    """One training step from a gradient (for LLQR+SAM, the gradient at the perturbed weights).

    Args:
        config: the settings of LLQR.
        state: the state before the step.
        gradient: g, flat (d,).
        eta: learning rate; with a fixed root mean square, the RMS change of a weight in this step.
        base: the base optimizer; none given means Nesterov momentum 0.9 without decay.

    Returns:
        The state after the step.

    Raises:
        ValueError: a gradient that does not fit or is not finite, a negative learning rate.

    Source: LLQR, arXiv 2605.04230 (acts_on "gradient"); the book, (21.1), (21.2).
    """
    g = check_vector("gradient", gradient, state.w.size)
    eta = check_number("eta", eta, low=0.0)
    base = HeavyBall() if base is None else base
    if config.acts_on == "gradient":
        S = step_rule(config.step_rule, state.U.apply(g), g, state.shapes)
        v = S + base.wd * state.w
        m = base.beta * state.m + v
        move = v + base.beta * m if base.nesterov else m
    else:
        m = base.beta * state.m + g
        M = g + base.beta * m if base.nesterov else m
        move = step_rule(config.step_rule, state.U.apply(M), M, state.shapes) + base.wd * state.w
    return replace(state, w=state.w - eta * move, m=m, steps=state.steps + 1)


def training_step(
    config: LLQRConfig,
    state: State,
    gradient: Callable[[Float[np.ndarray, " d"]], ArrayLike],
    eta: float,
    base: HeavyBall | None = None,
    *,
    rho: float = 0.0,
    learn: Callable[[State], State] | None = None,
) -> State:
    """One training step of LLQR, or of LLQR+SAM: the rule at the top of this file, whole.

    Args:
        config: the settings of LLQR.
        state: the state before the step.
        gradient: w -> the gradient of the loss there, flat (d,).
        eta: learning rate; with a fixed root mean square, the RMS change of a weight in this step.
        base: the base optimizer; none given means Nesterov momentum 0.9 without decay.
        rho: radius of the perturbation, in weights; 0 is LLQR alone.
        learn: state -> the state with U learned anew at its weights, called when a refit is due: ``refit`` with probes
            and curvature; None refits by the step's own gradient with probe_vector="step", and never otherwise.

    Returns:
        The state after the step.

    Raises:
        ValueError: a gradient that does not fit or is not finite, a negative learning rate or radius.

    Source: LLQR, arXiv 2605.04230; LLQR+SAM, arXiv 2605.16134; the book, chapter 21.
    """
    due = refit_due(config, state)
    if due and learn is not None:
        state = learn(state)
    g: ArrayLike = gradient(state.w)
    if due and learn is None and config.probe_vector == "step":
        state = refit(config, state, check_vector("gradient", g, state.w.size))
    if rho:
        g = gradient(state.w + perturbation(state.U, g, rho))
    return update(config, state, g, eta, base)


def perturbation(
    U: Preconditioner, v: ArrayLike, rho: float, norm: str = "euclidean"
) -> Float[np.ndarray, " d"]:
    """The perturbation of LLQR+SAM: epsilon = rho U v/|U v|, or rho U v/sqrt(v'U v) in the dual norm.

    Args:
        U: preconditioner on d weights.
        v: ascent vector, the gradient at the unperturbed weights or a centered one, flat (d,).
        rho: radius, in weights ("euclidean") or in the metric's unit of length ("dual").
        norm: "euclidean", where the scale of U cannot matter, or "dual", the steepest step under G = U^{-1}.

    Returns:
        epsilon, zero where U v is zero.

    Raises:
        ValueError: a negative radius, an unknown norm, or v'U v < 0 with the dual norm.

    Source: LLQR+SAM, arXiv 2605.16134; the book, (1.1), prop-norm-choice.
    """
    v = check_vector("v", v, U.size)
    square = float(v @ U.apply(v))
    if norm == "dual" and square < 0:
        raise ValueError(
            f"v'U v={square:.6g} has no square root: U is not positive definite; "
            "use norm='euclidean' or positive=True."
        )
    return ascent_step(v, rho, Learned(U), norm)
