"""Losses small enough to draw, each with its gradient and Hessian, one after the other (hence the length).

A point w has shape (..., d): leading axes are a batch of points. Complex points are let through, so that a
derivative can be checked by a complex step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial, pi

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Polynomial

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_symmetric, check_vector


@dataclass(frozen=True)
class Landscape:
    """A loss L(w) with its gradient g and Hessian H.

    Args:
        name: name in error messages and figures.
        dimension: d, the number of weights.
        loss: w of shape (..., d) -> L of shape (...).
        slope: w -> g of shape (..., d).
        curvature: w -> H of shape (..., d, d).

    Source: the book, section "One notation": L, g and H.
    """

    name: str
    dimension: int
    loss: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]

    def value(self, w: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch"]:
        """The loss L(w).

        Args:
            w: weights, shape (..., d).

        Returns:
            L, shape (...).
        """
        return self.loss(self._points(w))

    def gradient(self, w: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """The gradient g(w).

        Args:
            w: weights, shape (..., d).

        Returns:
            g, shape (..., d).
        """
        return self.slope(self._points(w))

    def hessian(self, w: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d d"]:
        """The Hessian H(w).

        Args:
            w: weights, shape (..., d).

        Returns:
            H, shape (..., d, d).
        """
        return self.curvature(self._points(w))

    def _points(self, w: Array) -> Array:
        points = np.asarray(w)
        if points.ndim < 1 or points.shape[-1] != self.dimension:
            raise ValueError(
                f"w has shape {points.shape}; pass points of shape (..., {self.dimension}) to {self.name!r}."
            )
        return points if np.issubdtype(points.dtype, np.inexact) else points.astype(np.float64)


def quadratic(H: Float[np.ndarray, "d d"], name: str = "quadratic") -> Landscape:
    """L = w^T H w / 2 for a symmetric H of any signs.

    Args:
        H: the Hessian, shape (d, d).
        name: name in error messages and figures.

    Returns:
        The landscape.

    Raises:
        ValueError: H is not square, not symmetric or not finite.

    Source: the book, (2.1).
    """
    H = check_symmetric("H", H)
    return Landscape(
        name,
        len(H),
        lambda w: np.sum(w * (w @ H), axis=-1) / 2,
        lambda w: w @ H,
        lambda w: np.broadcast_to(H, (*w.shape, len(H))),
    )


def bowl(curvatures: Float[np.ndarray, " d"]) -> Landscape:
    """L = sum_j h_j w_j^2 / 2 with h_j > 0.

    Args:
        curvatures: h, shape (d,).

    Returns:
        The landscape.

    Raises:
        ValueError: a curvature is not positive or not finite.

    Source: the book, (2.1).
    """
    h = check_vector("curvatures", curvatures)
    if (h <= 0).any():
        raise ValueError(f"curvatures={h.tolist()} must be positive; use quadratic(H) for other signs.")
    return quadratic(np.diag(h), "bowl")


def ravine() -> Landscape:
    """L = (10 x^2 + y^2)/2, condition number 10.

    Returns:
        The landscape.

    Source: the book, (2.1).
    """
    return quadratic(np.diag([10.0, 1.0]), "ravine")


def saddle(h_up: float = 2.0, h_down: float = 2.0) -> Landscape:
    """L = (h_up x^2 - h_down y^2)/2.

    Args:
        h_up: curvature of the direction that holds, loss per weight squared.
        h_down: size of the negative curvature of the direction that escapes.

    Returns:
        The landscape.

    Raises:
        ValueError: a curvature is not positive.

    Source: the book, (8.2).
    """
    h_up = check_number("h_up", h_up, low=0.0, open_low=True)
    h_down = check_number("h_down", h_down, low=0.0, open_low=True)
    return quadratic(np.diag([h_up, -h_down]), "saddle")


def hilltop(h: float = 2.0, dimension: int = 1) -> Landscape:
    """L = -h |w|^2/2, a maximum.

    Args:
        h: size of the negative curvature.
        dimension: d, the number of weights.

    Returns:
        The landscape.

    Raises:
        ValueError: h is not positive, or dimension is not a positive integer.

    Source: the book, (8.1).
    """
    h = check_number("h", h, low=0.0, open_low=True)
    return quadratic(-h * np.eye(check_count("dimension", dimension)), "hilltop")


def banana() -> Landscape:
    """L = (1 - w_0 w_1)^2: the two-weight network x_2 = w_1 w_0 with target 1 and squared error.

    Minima on w_0 w_1 = 1, a saddle at the origin.

    Returns:
        The landscape.

    Source: Jacobsen and Arvanitidis 2025 (arXiv 2502.08448), Fig. 1.
    """

    def gradient(w: Array) -> Array:
        slope: Array = 2 * (w[..., :1] * w[..., 1:] - 1) * w[..., ::-1]
        return slope

    def hessian(w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        cross = 4 * x * y - 2
        return _matrix([[2 * y**2, cross], [cross, 2 * x**2]])

    return Landscape("banana", 2, lambda w: (1 - w[..., 0] * w[..., 1]) ** 2, gradient, hessian)


def curved_valley() -> Landscape:
    """L = (1 + x^2) y^2/2: minima all along y = 0, flattest at x = 0.

    Returns:
        The landscape.

    Source: the book, chapter 7.
    """

    def gradient(w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        return np.stack([x * y**2, (1 + x**2) * y], axis=-1)

    def hessian(w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        return _matrix([[y**2, 2 * x * y], [2 * x * y, 1 + x**2]])

    return Landscape(
        "curved valley", 2, lambda w: (1 + w[..., 0] ** 2) * w[..., 1] ** 2 / 2, gradient, hessian
    )


def double_well_saddle(h: float = 20.0) -> Landscape:
    """L = h (x^2/2 - y^2/2 + y^4/4): a saddle at the origin between minima at y = -1 and y = 1.

    Args:
        h: curvature scale; the Hessian at the saddle is diag(h, -h).

    Returns:
        The landscape.

    Raises:
        ValueError: h is not positive.

    Source: the book, chapter 8.
    """
    h = check_number("h", h, low=0.0, open_low=True)

    def value(w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        return h * (x**2 / 2 - y**2 / 2 + y**4 / 4)

    def gradient(w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        return h * np.stack([x, y**3 - y], axis=-1)

    def hessian(w: Array) -> Array:
        y, zero = w[..., 1], np.zeros_like(w[..., 1])
        return h * _matrix([[zero + 1, zero], [zero, 3 * y**2 - 1]])

    return Landscape("double-well saddle", 2, value, gradient, hessian)


# sin(q)/q = sum_k (-1)^k q^(2k)/(2k+1)!, to rounding for |q| <= 1 (the closed form cancels there).
_SERIES = Polynomial([0.0 if k % 2 else (-1.0) ** (k // 2) / factorial(k + 1) for k in range(21)])


def flat_maximum(height: float = 5.0) -> Landscape:
    """L = height sin(r^2)/r^2 with r = |w|, in two dimensions: a maximum whose Hessian is zero.

    Args:
        height: L at the maximum, in units of loss.

    Returns:
        The landscape.

    Raises:
        ValueError: height is not positive.

    Source: Jacobsen and Arvanitidis 2025 (arXiv 2502.08448), Fig. 2.
    """
    height = check_number("height", height, low=0.0, open_low=True)

    def profile(w: Array, order: int) -> Array:
        """The derivative of that order of sin(q)/q, at q = |w|^2."""
        q = np.sum(w**2, axis=-1)
        near = np.abs(q) < 1
        far = np.where(near, 1.0, q)
        sin, cos = np.sin(far), np.cos(far)
        closed = (sin / far, (far * cos - sin) / far**2, ((2 - far**2) * sin - 2 * far * cos) / far**3)[order]
        return height * np.where(near, _SERIES.deriv(order)(np.where(near, q, 0.0)), closed)

    def hessian(w: Array) -> Array:
        outer = w[..., :, None] * w[..., None, :]
        along, round_ = profile(w, 2)[..., None, None], profile(w, 1)[..., None, None]
        return np.asarray(4 * along * outer + 2 * round_ * np.eye(2))

    return Landscape(
        "flat maximum", 2, lambda w: profile(w, 0), lambda w: 2 * profile(w, 1)[..., None] * w, hessian
    )


def pothole(
    curvatures: Float[np.ndarray, " d"] | tuple[float, ...] = (10.0, 0.2),
    hole: float = 2.8,
    width: float = 0.05,
    center: float = 0.0,
) -> Landscape:
    """L = sum_j h_j w_j^2/2 - hole width^2 exp(-(y - center)^2/(2 width^2)), y the last coordinate.

    A wide bowl with a narrow smooth hole in its last, flat direction: at the hole's bottom the curvature is
    h_last + hole when center = 0, while the average over y is h_last.

    Args:
        curvatures: h of the bowl, shape (d,).
        hole: curvature that the hole adds at its center.
        width: of the hole, in weights.
        center: where the hole is, in weights.

    Returns:
        The landscape.

    Raises:
        ValueError: a curvature, hole or width that is not positive, or a center that is not finite.

    Source: the book, chapters 19 and 20.
    """
    base = bowl(np.asarray(curvatures))
    hole = check_number("hole", hole, low=0.0, open_low=True)
    width = check_number("width", width, low=0.0, open_low=True)
    center = check_number("center", center)

    def dent(w: Array) -> tuple[Array, Array]:
        t = (w[..., -1] - center) / width
        return t, hole * np.exp(-(t**2) / 2)

    def value(w: Array) -> Array:
        return base.loss(w) - width**2 * dent(w)[1]

    def gradient(w: Array) -> Array:
        t, depth = dent(w)
        g = base.slope(w)
        g[..., -1] += width * t * depth
        return g

    def hessian(w: Array) -> Array:
        t, depth = dent(w)
        H = base.curvature(w).astype(w.dtype)
        H[..., -1, -1] += (1 - t**2) * depth
        return H

    return Landscape("pothole", base.dimension, value, gradient, hessian)


def pothole_road(
    stiff: int = 5,
    flat: int = 20,
    h_stiff: float = 100.0,
    h_flat: float = 0.1,
    pit_curvature: float = 20.0,
    period: float = 1.0,
) -> Landscape:
    """L = sum h_j w_j^2/2 + sum over flat j of k (l/2 pi)^2 (1 - cos(2 pi w_j/l)).

    A stiff bowl, a flat bowl, and cosine pits whose curvature k averages to zero along the road.

    Args:
        stiff: number of stiff coordinates, which come first.
        flat: number of flat coordinates.
        h_stiff: curvature of the stiff coordinates.
        h_flat: curvature of the flat coordinates' bowl.
        pit_curvature: k, curvature added at the bottom of a pit; 0 for a road without pits.
        period: l, distance between pits, in weights.

    Returns:
        The landscape, of dimension stiff + flat.

    Raises:
        ValueError: a count below its least value, or a curvature or period out of range.

    Source: the book, chapter 20.
    """
    stiff, flat = check_count("stiff", stiff, low=0), check_count("flat", flat)
    h_stiff = check_number("h_stiff", h_stiff, low=0.0, open_low=True)
    h_flat = check_number("h_flat", h_flat, low=0.0, open_low=True)
    k = check_number("pit_curvature", pit_curvature, low=0.0)
    omega = 2 * pi / check_number("period", period, low=0.0, open_low=True)
    h = np.concatenate([np.full(stiff, h_stiff), np.full(flat, h_flat)])
    pit = np.concatenate([np.zeros(stiff), np.full(flat, k)])

    def value(w: Array) -> Array:
        return np.asarray(np.sum(h * w**2 / 2 + pit / omega**2 * (1 - np.cos(omega * w)), axis=-1))

    def gradient(w: Array) -> Array:
        return np.asarray(h * w + pit / omega * np.sin(omega * w))

    def hessian(w: Array) -> Array:
        return np.asarray((h + pit * np.cos(omega * w))[..., None] * np.eye(len(h)))

    return Landscape("pothole road", len(h), value, gradient, hessian)


def minima_manifold(first: float = 1.0, second: float = 1.0) -> Landscape:
    """L = first F_1(u) x^2 + second F_2(u) y^2 at w = (u_1, u_2, x, y): minima everywhere on x = y = 0.

    F_1 = 3 + (u_1 - 1)^2 + u_2^2 and F_2 = 1 + ((u_1 + 1)^2 + (u_2 - 1)^2)/5. On the minima the curvatures
    are 2 F_1 > 2 F_2: the top eigenvalue is least at u = (1, 0), the trace at u = (2/3, 1/6). The weights
    (2, 0) and (0, 2) give the losses of two samples whose mean has the weights (1, 1).

    Args:
        first: weight of the first sample.
        second: weight of the second sample.

    Returns:
        The landscape, of dimension 4.

    Raises:
        ValueError: a negative weight.

    Source: the construction of Wen, Ma and Li 2023 (arXiv 2211.05729), with the book's constants.
    """
    first = check_number("first", first, low=0.0)
    second = check_number("second", second, low=0.0)
    at = np.array([[1.0, 0.0], [-1.0, 1.0]])  # minimizers of F_1 and F_2
    least, spread = np.array([3.0, 1.0]), np.array([1.0, 0.2])
    weight = np.array([first, second])

    def parts(w: Array) -> tuple[Array, Array, Array]:
        """The two factors F, their gradients in u, and the coordinates (x, y) they multiply."""
        away = w[..., None, :2] - at
        return (
            weight * (least + spread * np.sum(away**2, -1)),
            2 * (weight * spread)[:, None] * away,
            w[..., 2:],
        )

    def value(w: Array) -> Array:
        F, _, x = parts(w)
        return np.asarray(np.sum(F * x**2, axis=-1))

    def gradient(w: Array) -> Array:
        F, dF, x = parts(w)
        return np.concatenate([np.sum(dF * x[..., None] ** 2, axis=-2), 2 * F * x], axis=-1)

    def hessian(w: Array) -> Array:
        F, dF, x = parts(w)
        H = np.zeros((*w.shape, 4), dtype=w.dtype)
        H[..., :2, :2] = np.sum(2 * weight * spread * x**2, axis=-1)[..., None, None] * np.eye(2)
        H[..., 2:, :2] = 2 * dF * x[..., None]
        H[..., :2, 2:] = np.swapaxes(H[..., 2:, :2], -1, -2)
        H[..., 2:, 2:] = 2 * F[..., None] * np.eye(2)
        return H

    return Landscape("manifold of minima", 4, value, gradient, hessian)


def _matrix(rows: list[list[Array]]) -> Array:
    """Stack entries of shape (...) into matrices of shape (..., d, d)."""
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
