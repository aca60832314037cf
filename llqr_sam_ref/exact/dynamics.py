"""GD, SAM, M-SAM, preconditioned GD and LLQR+SAM, iterated on a landscape.

Every method here is one step of the form

    w <- w - eta U grad L(w + epsilon),     epsilon the seam of ``geometry`` at the gradient g,

with heavy-ball momentum on U grad L if beta > 0. U is frozen: a slow preconditioner is the inverse of an
average curvature, one that has caught up is the inverse of the local curvature. ``stability`` says in closed
form what these iterations do, ``orbits`` finds the same numbers by iterating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_choice, check_count, check_number
from llqr_sam_ref.exact._arrays import check_points, check_preconditioner
from llqr_sam_ref.exact.geometry import apply_U, scaled_step
from llqr_sam_ref.exact.landscapes import Array, Landscape
from llqr_sam_ref.exact.stability import (
    contrast,
    contrast_limit,
    cycle_multipliers,
    monge_basin_radius,
    monge_cycle_amplitude,
    pothole_multiplier,
    sam_basin_radius,
    sam_cycle_amplitude,
    sam_loss_floor,
    step_limit,
    unnormalized_saddle_threshold,
    valley_drift,
)

__all__ = [  # the closed forms that go with the iterations are offered here too
    "Method",
    "clipped_sam",
    "contrast",
    "contrast_limit",
    "cycle_multipliers",
    "gd",
    "llqr_sam",
    "monge_basin_radius",
    "monge_cycle_amplitude",
    "monge_sam",
    "orbit",
    "perturbation",
    "pothole_multiplier",
    "preconditioned_gd",
    "sam",
    "sam_basin_radius",
    "sam_cycle_amplitude",
    "sam_loss_floor",
    "step",
    "step_limit",
    "trajectory",
    "unnormalized_saddle_threshold",
    "unnormalized_sam",
    "valley_drift",
]

NORMS = ("euclidean", "dual", "none", "clipped")
Noise = Callable[[int, tuple[int, ...]], Array] | Array


@dataclass(frozen=True, eq=False)
class Method:
    """One optimizer: its step and its perturbation.

    euclidean: epsilon = rho U g/|U g|
    dual:      epsilon = rho U g/sqrt(q (1 + alpha^2 q)), q = g^T U g
    none:      epsilon = rho U g
    clipped:   euclidean with radius min(rho, rho/|g|)

    Args:
        name: what to call it.
        eta: step size.
        rho: radius of the perturbation, in weights (dual: in the metric's unit of length; none: a factor).
        alpha: Monge strength, weights per loss; needs norm="dual", whose metric is U^{-1} + alpha^2 g g^T.
        U: inverse preconditioner, diagonal (d,) or positive definite (d, d); the identity if None.
        norm: "euclidean", "dual", "none" or "clipped".
        beta: heavy-ball momentum, 0 <= beta < 1.
        ascent_U: U of the perturbation where it is not that of the step (for ablations).

    Raises:
        ValueError: a number out of range, a U that is not positive definite, or alpha without norm="dual".

    Source: the book, (1.2) and chapter 21; the closed form of the dual norm is prop-rank-one-metric.
    """

    name: str
    eta: float
    rho: float = 0.0
    alpha: float = 0.0
    U: Array | None = None
    norm: str = "euclidean"
    beta: float = 0.0
    ascent_U: Array | None = None  # noqa: N815

    def __post_init__(self) -> None:
        check_number("eta", self.eta, low=0.0)
        check_number("rho", self.rho, low=0.0)
        check_number("beta", self.beta, low=0.0, high=1.0, open_high=True)
        check_choice("norm", self.norm, NORMS)
        if check_number("alpha", self.alpha, low=0.0) > 0 and self.norm != "dual":
            raise ValueError(f'alpha={self.alpha} has no effect with norm={self.norm!r}; pass norm="dual".')
        for field in ("U", "ascent_U"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, check_preconditioner(field, getattr(self, field)))


def gd(eta: float, beta: float = 0.0) -> Method:
    """Gradient descent, w <- w - eta g; heavy ball if beta > 0. Source: the book, (2.1)."""
    return Method("GD", eta, beta=beta)


def sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """SAM, epsilon = rho g/|g|. Source: Foret et al. 2021, eq. 2; the book, (5.2) and (5.3)."""
    return Method("SAM", eta, rho, beta=beta)


def unnormalized_sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """Unnormalized SAM, epsilon = rho g. Source: Andriushchenko and Flammarion 2022; the book, (6.4)."""
    return Method("unnormalized SAM", eta, rho, norm="none", beta=beta)


def monge_sam(eta: float, rho: float, alpha: float = 1.0, beta: float = 0.0) -> Method:
    """M-SAM, epsilon = rho g/(|g| sqrt(1 + alpha^2 |g|^2)). Source: arXiv 2502.08448, eq. 9."""
    return Method("M-SAM", eta, rho, alpha, norm="dual", beta=beta)


def clipped_sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """SAM of radius min(rho, rho/|g|), M-SAM's bounds without its metric. Source: the book, chapter 12."""
    return Method("clipped SAM", eta, rho, norm="clipped", beta=beta)


def preconditioned_gd(eta: float, U: Array, beta: float = 0.0) -> Method:
    """Preconditioned descent, w <- w - eta U g. Source: the book, (2.4); LLQR, arXiv 2605.04230."""
    return Method("LLQR", eta, U=U, beta=beta)


def llqr_sam(eta: float, rho: float, U: Array, norm: str = "euclidean", beta: float = 0.0) -> Method:
    """LLQR+SAM: U in the step and in the perturbation. Source: arXiv 2605.16134; the book, (19.1)."""
    return Method("LLQR+SAM", eta, rho, U=U, norm=norm, beta=beta)


def perturbation(method: Method, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
    """The method's epsilon at a gradient; a zero gradient gives a zero perturbation.

    Args:
        method: which rule.
        g: gradient, shape (..., d).

    Returns:
        epsilon, shape (..., d).

    Raises:
        ValueError: wrong shape, NaN or infinite gradient.

    Source: the book, (1.2).
    """
    U = method.U if method.ascent_U is None else method.ascent_U
    return _perturb(method, check_points("g", g, None if U is None else len(U)))


def _perturb(method: Method, g: Array) -> Array:
    U = method.U if method.ascent_U is None else method.ascent_U
    p = g if U is None else apply_U(U, g)
    if method.norm == "none":
        return np.asarray(method.rho * p)
    if method.norm == "dual":
        if method.alpha > 0:  # Sherman-Morrison at g itself: no cancellation on steep ground
            p = p / (1 + method.alpha**2 * np.sum(g * p, axis=-1, keepdims=True))
        return scaled_step(g, p, method.rho, "dual")
    e = scaled_step(g, p, method.rho, "euclidean")
    if method.norm == "clipped":
        e = e / np.maximum(1.0, np.linalg.norm(g, axis=-1, keepdims=True))
    return e


def _direction(method: Method, landscape: Landscape, w: Array, xi: Array | float) -> Array:
    """U grad L(w + epsilon); the gradient noise xi is the same in both passes."""
    g = landscape.slope(w) + xi
    if method.rho > 0:
        g = landscape.slope(w + _perturb(method, g)) + xi
    return g if method.U is None else apply_U(method.U, g)


def step(
    method: Method,
    landscape: Landscape,
    w: Float[np.ndarray, "*batch d"],
    noise: Float[np.ndarray, "*batch d"] | None = None,
) -> Float[np.ndarray, "*batch d"]:
    """One step from rest, T(w) = w - eta U grad L(w + epsilon).

    Args:
        method: the optimizer.
        landscape: the loss.
        w: weights, shape (..., d).
        noise: added to the gradient in both passes, shape (..., d); none by default.

    Returns:
        The next weights, shape (..., d).

    Raises:
        ValueError: wrong shapes, NaN or infinite entries.

    Source: the book, (5.3).
    """
    w = _start("w", w, method, landscape)
    xi = 0.0 if noise is None else check_points("noise", noise, landscape.dimension)
    return w - method.eta * _direction(method, landscape, w, xi)


def trajectory(
    method: Method,
    landscape: Landscape,
    start: Float[np.ndarray, "*batch d"],
    steps: int,
    noise: Noise | None = None,
) -> Float[np.ndarray, "time *batch d"]:
    """Iterate a method from one start or from a batch of starts.

    v <- beta v + U grad L(w + epsilon),  w <- w - eta v,  with v = 0 before the first step. Divergence is a
    result: the path goes on with inf or NaN.

    Args:
        method: the optimizer.
        landscape: the loss.
        start: w_0, shape (..., d).
        steps: number of steps T.
        noise: gradient noise, the same in both passes: an array of shape (T, ..., d), one of shape (T, d)
            that all starts share, or a function (step, shape) -> array.

    Returns:
        w_0 ... w_T, shape (T + 1, ..., d).

    Raises:
        ValueError: wrong shapes, NaN or infinite start, negative number of steps.

    Source: the book, (5.3) and thm-sam-cycle-momentum.
    """
    w = _start("start", start, method, landscape)
    path = np.empty((check_count("steps", steps, low=0) + 1, *w.shape))
    for t, point in enumerate(orbit(method, landscape, w, steps, noise)):
        path[t] = point
    return path


def orbit(
    method: Method, landscape: Landscape, w: Array, steps: int, noise: Noise | None = None
) -> Iterator[Array]:
    """Yield w_0 ... w_T of ``trajectory`` one by one, keeping none of them and trusting the arguments."""
    if noise is not None and not callable(noise):
        noise = check_points("noise", noise)
        if len(noise) != steps or noise.shape[1:] != w.shape[-(noise.ndim - 1) :]:
            wanted = (steps, *w.shape)
            raise ValueError(
                f"noise has shape {noise.shape}; pass draws of shape {wanted} for the {steps} steps."
            )
    velocity: Array | float = 0.0
    yield w
    for t in range(steps):
        with np.errstate(over="ignore", invalid="ignore"):
            xi = 0.0 if noise is None else noise(t, w.shape) if callable(noise) else noise[t]
            velocity = method.beta * velocity + _direction(method, landscape, w, xi)
            w = w - method.eta * velocity
        yield w


def _start(argument: str, w: Array, method: Method, landscape: Landscape) -> Array:
    for field, U in (("U", method.U), ("ascent_U", method.ascent_U)):
        if U is not None and len(U) != landscape.dimension:
            raise ValueError(
                f"{field} has shape {U.shape} but {landscape.name!r} has {landscape.dimension} weights; "
                f"pass a {field} for {landscape.dimension} weights."
            )
    return check_points(argument, w, landscape.dimension)
