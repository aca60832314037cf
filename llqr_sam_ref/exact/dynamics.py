"""GD, SAM, M-SAM, preconditioned GD and LLQR+SAM, iterated on a landscape.

Every method here is one step of the form

    w <- w - eta U grad L(w + epsilon),     epsilon the seam of ``geometry`` at the gradient g,

with heavy-ball momentum on U grad L if beta > 0. U is frozen: a slow preconditioner is the inverse of an
average curvature, one that has caught up is the inverse of the local curvature. A method holds its perturbation, a
perturbation holds its metric. ``stability`` says in closed form what these iterations do, ``orbits`` finds the same
numbers by iterating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_choice, check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_points, check_preconditioner, dot
from llqr_sam_ref.exact.geometry import EUCLIDEAN, Metric, Preconditioned, apply_U, scaled_step
from llqr_sam_ref.exact.landscapes import Landscape

Noise = Callable[[int, tuple[int, ...]], Array] | Array


@dataclass(frozen=True, eq=False)
class Perturbation:
    """Where a method asks for the gradient: epsilon of a radius under a metric.

    Args:
        rho: radius, in the unit that the kind of perturbation says.
        metric: the metric G.

    Raises:
        ValueError: a radius that is negative or not finite.

    Source: the book, (1.2).
    """

    rho: float
    metric: Metric = EUCLIDEAN

    def __post_init__(self) -> None:
        check_number("rho", self.rho, low=0.0)

    def __call__(self, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The perturbation epsilon at a gradient that is trusted; a zero gradient gives a zero perturbation.

        Raises:
            NotImplementedError: on the base class, which has no length.
        """
        raise NotImplementedError


class Normalized(Perturbation):
    """epsilon = rho G^{-1} g/|G^{-1} g|, rho in weights: SAM, and LLQR+SAM as the authors have it."""

    def __call__(self, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The steepest direction at Euclidean length rho."""
        return scaled_step(g, self.metric.solve(g), self.rho, "euclidean")


@dataclass(frozen=True, eq=False)
class Steepest(Perturbation):
    """The steepest step of length rho under G + alpha^2 g g^T, rho in the metric's unit of length.

    epsilon = rho p/sqrt(g^T p) with p = G^{-1} g/(1 + alpha^2 g^T G^{-1} g): by Sherman-Morrison at g itself, so that
    no digit cancels on steep ground.

    Args:
        rho: radius, in the metric's unit of length.
        metric: the metric G.
        alpha: Monge strength, in weights per loss.

    Raises:
        ValueError: a radius or strength that is negative or not finite.

    Source: the book, (1.2), (10.2) and prop-rank-one-metric; arXiv 2502.08448, eq. 9.
    """

    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, low=0.0)

    def __call__(self, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The seam under G + alpha^2 g g^T."""
        p = self.metric.solve(g)
        if self.alpha > 0:
            p = p / (1 + self.alpha**2 * dot(g, p))
        return scaled_step(g, p, self.rho, "dual")


class Unnormalized(Perturbation):
    """epsilon = rho G^{-1} g, rho a factor. Source: Andriushchenko and Flammarion 2022; the book, (6.4)."""

    def __call__(self, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """A multiple of G^{-1} g."""
        return np.asarray(self.rho * self.metric.solve(g))


class Clipped(Normalized):
    """``Normalized`` at radius min(rho, rho/|g|): M-SAM's bounds without its metric. Source: the book, chapter 12."""

    def __call__(self, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The steepest direction, shorter on steep ground."""
        return np.asarray(super().__call__(g) / np.maximum(1.0, np.linalg.norm(g, axis=-1, keepdims=True)))


@dataclass(frozen=True, eq=False)
class Method:
    """One optimizer: its step and its perturbation.

    Args:
        name: name in error messages and figures.
        eta: step size, in units of 1/curvature; no unit where U has that one.
        ascent: the perturbation, with a metric of its own; None asks at w itself.
        U: inverse preconditioner of the step, diagonal (d,) or positive definite (d, d); the identity if None.
        beta: heavy-ball momentum, 0 <= beta < 1.

    Raises:
        ValueError: a number out of range, or a U that is not positive definite.

    Source: the book, (1.2) and chapter 21.
    """

    name: str
    eta: float
    ascent: Perturbation | None = None
    U: Array | None = None
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_number("eta", self.eta, low=0.0)
        check_number("beta", self.beta, low=0.0, high=1.0, open_high=True)
        if self.U is not None:
            object.__setattr__(self, "U", check_preconditioner("U", self.U))

    @property
    def rho(self) -> float:
        """The radius of the perturbation; 0 without one."""
        return 0.0 if self.ascent is None else self.ascent.rho


def gd(eta: float, beta: float = 0.0) -> Method:
    """Gradient descent, w <- w - eta g; heavy ball if beta > 0. Source: the book, (2.1)."""
    return Method("GD", eta, beta=beta)


def sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """SAM, epsilon = rho g/|g|. Source: Foret et al. 2021, eq. 2; the book, (5.2) and (5.3)."""
    return Method("SAM", eta, Normalized(rho), beta=beta)


def unnormalized_sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """Unnormalized SAM, epsilon = rho g. Source: Andriushchenko and Flammarion 2022; the book, (6.4)."""
    return Method("unnormalized SAM", eta, Unnormalized(rho), beta=beta)


def monge_sam(eta: float, rho: float, alpha: float = 1.0, beta: float = 0.0) -> Method:
    """M-SAM, epsilon = rho g/(|g| sqrt(1 + alpha^2 |g|^2)). Source: arXiv 2502.08448, eq. 9."""
    return Method("M-SAM", eta, Steepest(rho, alpha=alpha), beta=beta)


def clipped_sam(eta: float, rho: float, beta: float = 0.0) -> Method:
    """SAM of radius min(rho, rho/|g|), M-SAM's bounds without its metric. Source: the book, chapter 12."""
    return Method("clipped SAM", eta, Clipped(rho), beta=beta)


def preconditioned_gd(eta: float, U: Array, beta: float = 0.0) -> Method:
    """Preconditioned descent, w <- w - eta U g. Source: the book, (2.4); LLQR, arXiv 2605.04230."""
    return Method("LLQR", eta, U=U, beta=beta)


def llqr_sam(eta: float, rho: float, U: Array, norm: str = "euclidean", beta: float = 0.0) -> Method:
    """LLQR+SAM: U in the step, and U^{-1} the metric of the perturbation.

    Args:
        eta: step size; no unit.
        rho: radius, in the unit that the norm says.
        U: inverse preconditioner, diagonal (d,) or positive definite (d, d).
        norm: "euclidean", rho in weights, or "dual", in the metric's unit of length.
        beta: heavy-ball momentum, 0 <= beta < 1.

    Returns:
        The method.

    Raises:
        ValueError: a number out of range, an unknown norm, or a U that is not positive definite.

    Source: arXiv 2605.16134; the book, (19.1).
    """
    kind = {"euclidean": Normalized, "dual": Steepest}[check_choice("norm", norm, ("euclidean", "dual"))]
    return Method("LLQR+SAM", eta, kind(rho, Preconditioned(U)), U=U, beta=beta)


def unnormalized_llqr_sam(eta: float, rho: float, U: Array, beta: float = 0.0) -> Method:
    """LLQR+SAM with epsilon = rho U g, linear where the landscape is: the form that chapter 19 solves.

    Args:
        eta: step size; no unit.
        rho: factor of the perturbation; no unit.
        U: inverse preconditioner, diagonal (d,) or positive definite (d, d).
        beta: heavy-ball momentum, 0 <= beta < 1.

    Returns:
        The method.

    Raises:
        ValueError: a number out of range, or a U that is not positive definite.

    Source: the book, (19.2).
    """
    return Method("LLQR+SAM", eta, Unnormalized(rho, Preconditioned(U)), U=U, beta=beta)


def perturbation(method: Method, g: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
    """The method's epsilon at a gradient; a zero gradient gives a zero perturbation.

    Args:
        method: the optimizer.
        g: gradient, shape (..., d).

    Returns:
        epsilon, shape (..., d).

    Raises:
        ValueError: wrong shape, NaN or infinite gradient.

    Source: the book, (1.2).
    """
    if method.ascent is None:
        return np.zeros_like(check_points("g", g))
    return method.ascent(check_points("g", g, method.ascent.metric.dimension))


def _direction(method: Method, landscape: Landscape, w: Array, xi: Array | float) -> Array:
    """U grad L(w + epsilon); the gradient noise xi is the same in both passes."""
    g = landscape.slope(w) + xi
    if method.ascent is not None and method.ascent.rho > 0:
        g = landscape.slope(w + method.ascent(g)) + xi
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
    if method.U is not None and len(method.U) != landscape.dimension:
        raise ValueError(
            f"U has shape {method.U.shape} but {landscape.name!r} has {landscape.dimension} weights; "
            f"pass a U for {landscape.dimension} weights."
        )
    size = None if method.ascent is None else method.ascent.metric.dimension
    if size not in {None, landscape.dimension}:
        raise ValueError(
            f"the metric of the perturbation acts on {size} weights but {landscape.name!r} has "
            f"{landscape.dimension}; pass one for {landscape.dimension} weights."
        )
    return check_points(argument, w, landscape.dimension)
