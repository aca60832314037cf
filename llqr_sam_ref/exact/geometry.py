"""Metrics, one after the other (hence the length), and the one formula behind SAM, ASAM, M-SAM and LLQR+SAM.

A metric G (symmetric positive definite) gives a displacement v the length sqrt(v^T G v). The steepest ascent
step of length rho, for the ascent vector v (the gradient g unless said otherwise), is "the seam"

    epsilon = rho G^{-1} v / sqrt(v^T G^{-1} v).

Vectors may carry leading axes, shape (..., d). Everything is float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from llqr_sam_ref.errors import check_choice, check_number
from llqr_sam_ref.exact._arrays import (
    check_last_axis,
    check_points,
    check_preconditioner,
    check_spd,
    check_symmetric,
    check_vector,
    dot,
    length,
    size,
)

if TYPE_CHECKING:
    from llqr_sam_ref.exact.preconditioner import Preconditioner

NORMS = ("dual", "euclidean")
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


class Metric:
    """A symmetric positive definite G, known by what it does to vectors of shape (..., d).

    Source: the book, (1.1).
    """

    @property
    def dimension(self) -> int | None:
        """The number of weights d that G acts on; None where any will do."""
        return None

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v.

        Args:
            v: displacement, shape (..., d), in units of weights.

        Returns:
            G v, shape (..., d).

        Raises:
            NotImplementedError: on the base class, which has no G.
        """
        raise NotImplementedError

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v.

        Args:
            v: gradient-like vector, shape (..., d), in units of loss per weight.

        Returns:
            G^{-1} v, shape (..., d).

        Raises:
            NotImplementedError: on the base class, which has no G.
        """
        raise NotImplementedError

    def matrix(self, d: int) -> Float[np.ndarray, "*batch d d"]:
        """G written out.

        Args:
            d: number of weights.

        Returns:
            G, shape (d, d), after the leading axes of the metric if it has any.
        """
        return np.stack([self.multiply(e) for e in np.eye(d)], axis=-1)


class Euclidean(Metric):
    """G = I, the metric of SAM.

    Source: Foret et al. 2021 (arXiv 2010.01412), eq. 2.
    """

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v = v."""
        return v

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v = v."""
        return v


class Adaptive(Metric):
    """G = T^{-2}, the metric of ASAM: T = diag(|w| + eta), and T = 1 on biases.

    A weight of zero with eta = 0 cannot be perturbed: its entry of G^{-1} is 0 and G is infinite there.

    Args:
        weights: w, shape (..., d).
        eta: added to |w|, in units of weights; the authors use 0.01.
        bias: true where a coordinate is a bias, shape (d,); none by default.

    Raises:
        ValueError: wrong shapes, entries that are not finite, or negative eta.

    Source: Kwon et al. 2021 (arXiv 2102.11600); T = 1 on biases and eta as in the authors' code.
    """

    def __init__(
        self,
        weights: Float[np.ndarray, "*batch d"],
        eta: float = 0.0,
        bias: Bool[np.ndarray, " d"] | None = None,
    ) -> None:
        w = check_points("weights", weights)
        scale = np.abs(w) + check_number("eta", eta, low=0.0)
        if bias is not None:
            scale = np.where(check_vector("bias", bias, w.shape[-1]) != 0, 1.0, scale)
        self.scale: Float[np.ndarray, "*batch d"] = scale

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v = T^{-2} v.

        Args:
            v: displacement, shape (..., d).

        Returns:
            G v, shape (..., d).

        Raises:
            ValueError: a weight is 0 and eta is 0, so that the length is infinite.
        """
        if not self.scale.all():
            index = [int(i) for i in np.argwhere(self.scale == 0)[0]]
            raise ValueError(f"weights{index}=0 has no finite length with eta=0; pass a positive eta.")
        return np.asarray(check_points("v", v, self.scale.shape[-1]) / self.scale**2)

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v = T^2 v."""
        return np.asarray(check_points("v", v, self.scale.shape[-1]) * self.scale**2)


class PositiveDefinite(Metric):
    """Any symmetric positive definite G.

    Args:
        G: the metric, shape (d, d).

    Raises:
        ValueError: G is not square, not symmetric, not finite or not positive definite.

    Source: the book, (1.1).
    """

    def __init__(self, G: Float[np.ndarray, "d d"]) -> None:
        self.G: Float[np.ndarray, "d d"] = check_spd("G", G)

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v."""
        return np.asarray(check_points("v", v, len(self.G)) @ self.G)

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v."""
        solution: Float[np.ndarray, "*batch d"] = np.linalg.solve(
            self.G, check_points("v", v, len(self.G))[..., None]
        )[..., 0]
        return solution


class Fisher(PositiveDefinite):
    """G = F + mu I, or G = diag(f) + mu I: the metric of Fisher SAM.

    Args:
        fisher: the Fisher matrix F, shape (d, d), or its diagonal f, shape (d,); exact or empirical.
        damping: mu, in the units of F.

    Raises:
        ValueError: wrong shape, not finite, negative damping, or F + mu I not positive definite.

    Source: Kim et al. 2022 (arXiv 2206.04920).
    """

    def __init__(
        self, fisher: Float[np.ndarray, "d d"] | Float[np.ndarray, " d"], damping: float = 0.0
    ) -> None:
        mu = check_number("damping", damping, low=0.0)
        F = (
            np.diag(check_vector("fisher", fisher))
            if np.ndim(fisher) == 1
            else check_symmetric("fisher", fisher)
        )
        self.G = check_spd("fisher", F + mu * np.eye(len(F)))


class Preconditioned(Metric):
    """G = U^{-1}, the metric of LLQR+SAM: U is the learned inverse preconditioner.

    Args:
        U: positive diagonal, shape (d,), or symmetric positive definite, shape (d, d); s = U g is the step.

    Raises:
        ValueError: wrong shape, not finite, or not positive definite.

    Source: the book, (1.2) with G = U^{-1}; LLQR+SAM, arXiv 2605.16134.
    """

    def __init__(self, U: Float[np.ndarray, "d d"] | Float[np.ndarray, " d"]) -> None:
        self.U: Float[np.ndarray, "d d"] | Float[np.ndarray, " d"] = check_preconditioner("U", U)

    @property
    def dimension(self) -> int:
        """The number of weights d."""
        return len(self.U)

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v = U^{-1} v."""
        v = check_points("v", v, len(self.U))
        if self.U.ndim == 1:
            return np.asarray(v / self.U)
        product: Float[np.ndarray, "*batch d"] = np.linalg.solve(self.U, v[..., None])[..., 0]
        return product

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v = U v, also where v has stopped being finite: an iteration that diverged goes on."""
        check_last_axis("v", v, len(self.U))
        return apply_U(self.U, v)


class Learned(Metric):
    """G = U^{-1} for a U that is kept in blocks and factors, as LLQR learns it: LLQR+SAM's metric.

    U is trusted, not checked: an unconstrained one may be indefinite, and then G is no metric; ``ascent_step``
    with the Euclidean norm works all the same.

    Args:
        U: preconditioner on d weights; s = U g is the step.

    Source: LLQR+SAM, arXiv 2605.16134; the book, thm-frozen-metric-is-sam.
    """

    def __init__(self, U: Preconditioner) -> None:
        self.U = U

    @property
    def dimension(self) -> int:
        """The number of weights d."""
        return self.U.size

    def multiply(self, v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """G v = U^{-1} v."""
        return np.linalg.solve(self.U.to_dense(), v)

    def solve(self, v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """G^{-1} v = U v."""
        return self.U.apply(v)


class Monge(Metric):
    """G = I + alpha^2 g g^T, the metric of M-SAM: distances measured along the graph of alpha L.

    By Sherman-Morrison G^{-1} v = v - alpha^2 g (g^T v)/(1 + alpha^2 |g|^2). It is computed as the part of v
    across g plus the part along g divided by 1 + alpha^2 |g|^2, which keeps its digits on steep ground.

    Args:
        gradient: g, shape (..., d).
        alpha: strength, in weights per loss; 0 is SAM, 1 is M-SAM.

    Raises:
        ValueError: wrong shape, not finite, or negative alpha.

    Source: Jacobsen and Arvanitidis 2025 (arXiv 2502.08448), eqs. 6 and 7; the book, (10.1) and (10.2).
    """

    def __init__(self, gradient: Float[np.ndarray, "*batch d"], alpha: float = 1.0) -> None:
        self.gradient: Float[np.ndarray, "*batch d"] = check_points("gradient", gradient)
        self.alpha = check_number("alpha", alpha, low=0.0)

    def multiply(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G v = v + alpha^2 g (g^T v)."""
        v = check_points("v", v, self.gradient.shape[-1])
        scaled = self.alpha * self.gradient
        return np.asarray(v + scaled * dot(scaled, v))

    def solve(self, v: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
        """G^{-1} v, by Sherman-Morrison."""
        v = check_points("v", v, self.gradient.shape[-1])
        slope = length(self.gradient)
        direction = self.gradient / np.where(slope == 0, 1.0, slope)
        along = direction * dot(direction, v)
        across = v - along
        # Of a vector parallel to g only rounding is left here; on steep ground it would outweigh the rest.
        across = np.where(np.abs(across) <= _ROUNDING * np.abs(v), 0.0, across)
        stretch = np.hypot(1.0, self.alpha * slope)
        return np.asarray(across + along / stretch / stretch)


EUCLIDEAN = Euclidean()


def apply_U(
    U: Float[np.ndarray, "d d"] | Float[np.ndarray, " d"], v: Float[np.ndarray, "*batch d"]
) -> Float[np.ndarray, "*batch d"]:
    """U v for a diagonal U of shape (d,) or a symmetric U of shape (d, d)."""
    return np.asarray(v * U if U.ndim == 1 else v @ U)


def ascent_step(
    vector: Float[np.ndarray, "*batch d"], rho: float, metric: Metric = EUCLIDEAN, norm: str = "dual"
) -> Float[np.ndarray, "*batch d"]:
    """The steepest ascent step of length rho under a metric; a zero vector gives a zero step.

    dual:       epsilon = rho G^{-1}v / sqrt(v^T G^{-1} v), so that sqrt(epsilon^T G epsilon) = rho
    euclidean:  epsilon = rho G^{-1}v / |G^{-1}v|,          so that |epsilon| = rho

    Args:
        vector: ascent vector v, shape (..., d); the gradient g for SAM.
        rho: radius, in the metric's unit of length (dual) or in weights (euclidean).
        metric: the metric G.
        norm: what has length rho, "dual" for the metric's length or "euclidean".

    Returns:
        epsilon, shape (..., d).

    Raises:
        ValueError: NaN or infinite vector, negative rho, unknown norm.

    Source: the book, (1.2); Foret et al. 2021, eq. 2; Jacobsen and Arvanitidis 2025, eq. 9.
    """
    v = check_points("vector", vector)
    check_number("rho", rho, low=0.0)
    check_choice("norm", norm, NORMS)
    return scaled_step(v, metric.solve(v), rho, norm)


def scaled_step(
    v: Float[np.ndarray, "*batch d"], solved: Float[np.ndarray, "*batch d"], rho: float, norm: str
) -> Float[np.ndarray, "*batch d"]:
    """The seam's last line, given v and G^{-1}v and trusting both: iterations call it at every step.

    Args:
        v: ascent vector, shape (..., d).
        solved: G^{-1} v, shape (..., d).
        rho: radius, in the metric's unit of length (dual) or in weights (euclidean).
        norm: what has length rho, "dual" for the metric's length or "euclidean".

    Returns:
        epsilon, shape (..., d).

    Source: the book, (1.2).
    """
    scale = size(solved)
    solved = solved / scale  # sizes near 1: no square overflows or underflows
    if norm == "euclidean":
        norm_of_solved = np.sqrt(dot(solved, solved))
    else:
        v_scale = size(v)
        norm_of_solved = np.sqrt(v_scale / scale) * np.sqrt(dot(v / v_scale, solved))
    return np.asarray(rho * solved / np.where(norm_of_solved == 0, 1.0, norm_of_solved))


def ascent_gain(
    gradient: Float[np.ndarray, "*batch d"], rho: float, metric: Metric = EUCLIDEAN
) -> Float[np.ndarray, "*batch"]:
    """First-order rise of the loss over the steepest step: g^T epsilon = rho sqrt(g^T G^{-1} g).

    Args:
        gradient: g, shape (..., d).
        rho: radius, in the metric's unit of length.
        metric: the metric G.

    Returns:
        The rise, in units of loss, shape (...).

    Raises:
        ValueError: NaN or infinite gradient, negative rho.

    Source: the book, (1.3).
    """
    g = check_points("gradient", gradient)
    scale = size(g)
    unit = g / scale
    gain: Float[np.ndarray, "*batch"] = (
        check_number("rho", rho, low=0.0) * scale * np.sqrt(dot(unit, metric.solve(unit)))
    )[..., 0]
    return gain


def metric_length(
    v: Float[np.ndarray, "*batch d"], metric: Metric = EUCLIDEAN
) -> Float[np.ndarray, "*batch"]:
    """Length of a displacement under a metric, sqrt(v^T G v).

    Args:
        v: displacement, shape (..., d), in units of weights.
        metric: the metric G.

    Returns:
        The length, shape (...).

    Raises:
        ValueError: NaN or infinite v.

    Source: the book, (1.1).
    """
    v = check_points("v", v)
    scale = size(v)
    lengths: Float[np.ndarray, "*batch"] = (scale * np.sqrt(dot(v / scale, metric.multiply(v / scale))))[
        ..., 0
    ]
    return lengths
