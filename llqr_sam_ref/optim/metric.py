"""The steepest ascent step of radius rho under a metric: pure functions, gradients in, perturbations out.

    epsilon = rho G^{-1} v / sqrt(v^T G^{-1} v)                                          (the seam)

v is the ascent vector (the gradient g unless said otherwise) over all parameters of all groups together, G
the metric: one norm for the whole model, not one per tensor. G = I is SAM, diag(|w| + eta)^{-2} ASAM,
diag(g^2 + eta) Fisher SAM, I + alpha^2 g g^T Monge SAM and U^{-1}, with U the learned inverse preconditioner,
LLQR+SAM.

A metric says which way it points (:meth:`Metric.direction`); :func:`perturbation` gives that direction its
length. Lists run in parallel over the tensors. ``foreach=False`` is the readable path, ``foreach=True`` the
fast one; they are tested equal. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llqr_sam_ref.errors import check_choice, check_number
from llqr_sam_ref.optim.distributed.shards import Tensors, inner_products, local_tensors, on, widen

NORMS = ("dual", "euclidean")


class Direction(NamedTuple):
    """Some positive multiple d of G^{-1} v, with what is known of its length for free.

    Attributes:
        tensors: d, one tensor for each parameter.
        metric_squares: d_i^T (G d)_i for each tensor, shape (n,); None where nobody computed it yet, then
            d = G^{-1} v and the numbers are v_i . d_i.
        squares: |d_i|^2 for each tensor, shape (n,); None where nobody computed it yet.
    """

    tensors: list[Tensor]
    metric_squares: Float[Tensor, " n"] | None = None
    squares: Float[Tensor, " n"] | None = None


class Perturbation(NamedTuple):
    """epsilon_i = scale_i d_i, as :func:`perturbation` returns it.

    Attributes:
        directions: d, one tensor for each parameter (this rank's shard of it).
        scales: the number that each is multiplied by, 0-d.
        length: |epsilon|, the realized Euclidean radius over all tensors and shards, 0-d.
        finite: false if v, or U, was unusable (NaN, Inf or v^T G^{-1} v < 0); then epsilon = 0.
    """

    directions: list[Tensor]
    scales: list[Tensor]
    length: Float[Tensor, ""]
    finite: Bool[Tensor, ""]

    def tensors(self) -> list[Tensor]:
        """Epsilon itself, new tensors."""
        return [_without_nan(d * s.to(d)) for d, s in zip(self.directions, self.scales, strict=True)]

    def add_to(self, weights: list[Tensor], foreach: bool) -> None:
        """W + epsilon, in place.

        Args:
            weights: local tensors of the parameters.
            foreach: few launches and one temporary copy of all tensors, or one tensor after the other.
        """
        if not foreach:
            for w, d, s in zip(weights, self.directions, self.scales, strict=True):
                w.add_(_without_nan(d * s.to(d)))
            return
        alike: dict[object, list[int]] = {}
        for i, (d, s) in enumerate(zip(self.directions, self.scales, strict=True)):
            alike.setdefault((id(s), d.device, d.dtype), []).append(i)
        for indices in alike.values():
            directions = [self.directions[i] for i in indices]
            steps = torch._foreach_mul(directions, self.scales[indices[0]].to(directions[0]))
            torch._foreach_add_([weights[i] for i in indices], [_without_nan(step) for step in steps])


def _without_nan(step: Tensor) -> Tensor:
    """Zero, and not NaN, where a scale of zero met an infinite direction."""
    return step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Ascent:
    """The place where the perturbation is taken.

    Attributes:
        parameters: the optimizer's own parameters w, in its order; sharded ones are keys, not data.
        vectors: ascent vector v, times the loss scale; local tensors of at least float32.
        gradients: g, times the loss scale; local tensors of at least float32; the same list as ``vectors``
            when v = g.
        names: each parameter's name, None where the optimizer was not given names.
        loss_scale: what the loss was multiplied by before the backward pass (a GradScaler's scale).
        foreach: one launch for all tensors, or one per tensor.
    """

    parameters: Tensors
    vectors: list[Tensor]
    gradients: list[Tensor]
    names: Sequence[str | None]
    loss_scale: Float[Tensor, ""] | float = 1.0
    foreach: bool = True

    @cached_property
    def weights(self) -> list[Tensor]:
        """w, as local tensors of at least float32."""
        return widen(local_tensors(self.parameters))

    def inner(self, lefts: Tensors, rights: Tensors) -> Float[Tensor, " n"]:
        """left_i . right_i for every tensor, over all shards."""
        return inner_products(lefts, rights, self.parameters, self.foreach)


class Metric:
    """A symmetric positive definite G(w, g), known by the direction G^{-1} v.

    ``default_norm`` is the normalization that SAM uses when none is asked for: the metric's own ("dual") for
    metrics with units of length, "euclidean" where the metric's scale means nothing.

    Source: the book, (1.2).
    """

    default_norm: ClassVar[str] = "dual"

    def direction(self, ascent: Ascent) -> Direction:
        """A positive multiple of G^{-1} v.

        Args:
            ascent: v, g and w.

        Returns:
            The direction.

        Raises:
            NotImplementedError: on the base class, which has no G.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Euclidean(Metric):
    """G = I: SAM, epsilon = rho v/|v|.

    Source: Foret et al. 2021 (arXiv 2010.01412), eq. 2.
    """

    def direction(self, ascent: Ascent) -> Direction:
        """G^{-1} v = v."""
        squares = ascent.inner(ascent.vectors, ascent.vectors)
        return Direction(ascent.vectors, squares, squares)


class Diagonal(Metric):
    """G diagonal: what :class:`Adaptive` and :class:`Fisher` share."""

    def inverse(
        self, weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], name: str | None
    ) -> Float[Tensor, "*shape"]:
        """The diagonal of G^{-1} for one tensor: the formula, to be read.

        Args:
            weight: w_i.
            gradient: g_i, free of any loss scale.
            name: the parameter's name, if known.

        Returns:
            G^{-1}, a tensor of the same shape.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def inverses(self, ascent: Ascent) -> list[Tensor]:
        """The same for all tensors, in few launches.

        Args:
            ascent: v, g and w.

        Returns:
            G^{-1}, new tensors that the caller may overwrite.

        Raises:
            NotImplementedError: on the base class.
        """
        raise NotImplementedError

    def direction(self, ascent: Ascent) -> Direction:
        """G^{-1} v, element by element."""
        if not ascent.foreach:
            return Direction([
                self.inverse(w, g / on(ascent.loss_scale, g), name) * v
                for w, g, v, name in zip(
                    ascent.weights, ascent.gradients, ascent.vectors, ascent.names, strict=True
                )
            ])
        inverses = self.inverses(ascent)
        torch._foreach_mul_(inverses, ascent.vectors)
        return Direction(inverses)


@dataclass(frozen=True)
class Adaptive(Diagonal):
    """G = T^{-2}, T = diag(|w| + eta) on weights and T = 1 on biases: ASAM, epsilon = rho T^2 v/|T v|.

    As the authors do, T = 1 on every parameter whose name does not contain "weight" (a norm layer's scale is
    called weight and is rescaled, its shift and all biases are not). Names are known when the optimizer is
    given ``model.named_parameters()``; without them a parameter counts as a weight from two dimensions up, so
    that a norm layer's scale is left alone too.

    Args:
        eta: added to |w|, in units of weights; the authors use 0.01.
        biases: rescale everything, biases included (the other convention in use).

    Raises:
        ValueError: eta is negative or not finite.

    Source: Kwon et al. 2021 (arXiv 2102.11600), eq. 8.
    """

    eta: float = 0.01
    biases: bool = False

    def __post_init__(self) -> None:
        check_number("eta", self.eta, low=0.0)

    def rescales(self, weight: Float[Tensor, "*shape"], name: str | None) -> bool:
        """Whether T = |w| + eta holds for this tensor, or T = 1."""
        return self.biases or (weight.ndim >= 2 if name is None else "weight" in name)

    def inverse(
        self, weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], name: str | None
    ) -> Float[Tensor, "*shape"]:
        """G^{-1} = (|w| + eta)^2, or 1."""
        if self.rescales(weight, name):
            return (weight.abs() + self.eta) ** 2
        return torch.ones_like(weight)

    def inverses(self, ascent: Ascent) -> list[Tensor]:
        """G^{-1} = (|w| + eta)^2, or 1."""
        T = list(torch._foreach_abs(tuple(ascent.weights)))
        torch._foreach_add_(T, self.eta)
        for t, weight, name in zip(T, ascent.weights, ascent.names, strict=True):
            if not self.rescales(weight, name):
                t.fill_(1.0)
        torch._foreach_mul_(T, T)
        return T


@dataclass(frozen=True)
class Fisher(Diagonal):
    """G = diag(g^2 + eta): Fisher SAM with the squared gradient as the diagonal Fisher.

    g^2 is the square of the batch's mean gradient, not a mean of squares; it costs nothing. eta has the units
    of g^2, so the loss's scale matters, and a GradScaler's is divided out.

    Args:
        eta: damping, in units of squared gradients; the LLQR+SAM authors use 0.1.

    Raises:
        ValueError: eta is not positive.

    Source: Kim et al. 2022 (arXiv 2206.04920), eq. 6; LLQR+SAM, arXiv 2605.16134.
    """

    eta: float = 0.1

    def __post_init__(self) -> None:
        check_number("eta", self.eta, low=0.0, open_low=True)

    def inverse(
        self, weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], name: str | None
    ) -> Float[Tensor, "*shape"]:
        """G^{-1} = 1/(g^2 + eta)."""
        return 1.0 / (gradient**2 + self.eta)

    def inverses(self, ascent: Ascent) -> list[Tensor]:
        """G^{-1} = 1/(g^2 + eta)."""
        G = [g / on(ascent.loss_scale, g) for g in ascent.gradients]
        torch._foreach_mul_(G, G)
        torch._foreach_add_(G, self.eta)
        torch._foreach_reciprocal_(G)
        return G


@dataclass(frozen=True)
class Monge(Metric):
    """G = I + alpha^2 g g^T: M-SAM, epsilon = rho g/(|g| sqrt(1 + alpha^2 |g|^2)) when v = g.

    The metric of the graph of alpha L: rho bounds both the step and the first-order rise of alpha L. It
    depends on the loss's scale (mean or sum, label smoothing, a GradScaler: give the scaler to
    ``perturbed``).

    Args:
        alpha: strength, in weights per loss; 0 is SAM, 1 is M-SAM.

    Raises:
        ValueError: alpha is negative or not finite.

    Source: Jacobsen and Arvanitidis 2025 (arXiv 2502.08448), eqs. 7 and 9; the book, (10.2) and (10.3).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, low=0.0)

    def direction(self, ascent: Ascent) -> Direction:
        """G^{-1} v = v - alpha^2 g (g^T v)/(1 + alpha^2 |g|^2), by Sherman-Morrison."""
        g, v = ascent.gradients, ascent.vectors
        squares = ascent.inner(g, g)
        strength = (self.alpha / on(ascent.loss_scale, squares)) ** 2  # of g g^T with scaled gradients
        stretch = 1.0 + strength * squares.sum()
        if v is g:  # an eigenvector of G: no tensor needs to be touched
            return Direction(g, squares * stretch, squares)
        along = strength * ascent.inner(g, v).sum() / stretch
        return Direction([b - along.to(a.device, a.dtype) * a for a, b in zip(g, v, strict=True)])


@dataclass(frozen=True)
class Preconditioned(Metric):
    """G = U^{-1}, U a learned inverse preconditioner: LLQR+SAM, epsilon = rho U v/|U v|.

    The default normalization is Euclidean, as in the authors' code: U's overall scale then cannot matter. U
    should be positive definite; where v^T U v < 0 the dual norm has no step and the perturbation is zero.

    Args:
        apply: (vectors, parameters) -> U v, one tensor for each vector and of its shape. For a parameter that
            is a ``DTensor`` the vector is this rank's shard, and so is the result.

    Source: LLQR+SAM, arXiv 2605.16134; the book, (19.1).
    """

    default_norm: ClassVar[str] = "euclidean"
    apply: Callable[[list[Tensor], Tensors], list[Tensor]]

    def direction(self, ascent: Ascent) -> Direction:
        """G^{-1} v = U v."""
        return Direction(self.apply(ascent.vectors, ascent.parameters))


def perturbation(
    ascent: Ascent,
    rho: Sequence[Float[Tensor, ""] | float],
    metric: Metric,
    norm: str | None = None,
    layerwise: bool = False,
) -> Perturbation:
    """The seam: the metric's direction, given its length.

    dual:      epsilon = rho d/sqrt(d^T G d), d a multiple of G^{-1} v, so that epsilon^T G epsilon = rho^2
    euclidean: epsilon = rho d/|d|, so that |epsilon| = rho
    layerwise: the same tensor by tensor with rho/sqrt(n), n tensors having a gradient

    Args:
        ascent: where: v, g and w.
        rho: radius for each tensor; the norm is shared, so groups differ only by this factor. A negative
            radius descends (``maximize``).
        metric: G.
        norm: "dual" or "euclidean"; None is the metric's default.
        layerwise: normalize every tensor by itself (another algorithm: another ball).

    Returns:
        epsilon, its Euclidean length, and whether v was usable; a zero v gives a zero epsilon.

    Source: the book, (1.2); layerwise as in the code of arXiv 2605.16134.
    """
    way = metric.direction(ascent)
    squares = ascent.inner(way.tensors, way.tensors) if way.squares is None else way.squares
    if check_choice("norm", norm or metric.default_norm, NORMS) == "euclidean":
        lengths = squares
    elif way.metric_squares is None:
        lengths = ascent.inner(ascent.vectors, way.tensors)
    else:
        lengths = way.metric_squares
    lengths = lengths * len(lengths) if layerwise else lengths.sum().expand_as(lengths)
    finite = (lengths.isfinite() & (lengths >= 0)).all()
    inverses = torch.where(finite & (lengths > 0), lengths.rsqrt(), 0.0).unbind()
    scales: list[Tensor] = []
    shared: dict[float | Tensor, Tensor] = {}  # groups of equal radius share one scale
    for inverse, r in zip(inverses, rho, strict=True):
        if layerwise or r not in shared:
            shared[r] = inverse * (r.to(finite.device) if isinstance(r, Tensor) else r)
        scales.append(shared[r])
    length = torch.where(finite, (torch.stack(scales).square() * squares).sum().sqrt(), 0.0)
    return Perturbation(way.tensors, scales, length, finite)
