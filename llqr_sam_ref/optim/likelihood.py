"""What a loss says of its outputs when it is a negative log-likelihood: labels to sample, a Fisher matrix.

A likelihood is a sum of independent terms, one a row of logits (``Categorical``) or one an output element
(``Bernoulli``, ``Gaussian``); a loss with ``reduction="mean"`` divides by the number of terms, positions with
``ignore_index`` not counted. Sampling goes by inverse distribution functions from uniforms that the caller
draws, so that one set of uniforms means the same labels at any world size and in any implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Num, Shaped
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.errors import check_choice, check_number

LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Likelihood(ABC):
    """p(y | z) for outputs z, as a product of independent terms.

    Args:
        reduction: "mean" or "sum": how the loss that stands for it adds the terms up.
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, ("mean", "sum"))

    def uniforms_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many uniforms ``sample`` needs for outputs of this shape; the first axis stays the examples."""
        return tuple(output_shape)

    def terms(self, outputs: Tensor, targets: Tensor | None = None) -> Shaped[Tensor, ""]:
        """The number of terms (0-d, on the outputs' device): what a mean loss divides by."""
        return torch.full((), outputs.numel(), dtype=outputs.dtype, device=outputs.device)

    @abstractmethod
    def sample(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Num[Tensor, "n ..."]:
        """Labels drawn from p(. | z) by inverse distribution functions; ignored targets stay ignored."""

    @abstractmethod
    def score(self, outputs: Float[Tensor, "n ..."], labels: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """d(-sum of log p(label | z)) / dz; zero where the label is ignored."""

    @abstractmethod
    def curvature(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, v: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The product Q v; Q = E[score score^T] is the outputs' Fisher matrix, summed over the terms."""


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes along axis 1 with probabilities softmax(z): Q = diag(pi) - pi pi^T in every row.

    Log-probabilities may be given for logits: their softmax is the same and so is everything below.
    Label smoothing changes neither the labels' distribution nor Q.

    Args:
        reduction: "mean" or "sum" over the rows that are not ignored.
        ignore_index: target of rows that do not count.
    """

    ignore_index: int = -100

    def uniforms_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One uniform a row: the output's shape without the classes' axis."""
        return (output_shape[0], *output_shape[2:])

    def terms(self, outputs: Tensor, targets: Tensor | None = None) -> Shaped[Tensor, ""]:
        """The number of rows whose target is not ``ignore_index``."""
        counted = self._counted(outputs, targets)
        if counted is None:
            rows = outputs.numel() // outputs.shape[1]
            return torch.full((), rows, dtype=outputs.dtype, device=outputs.device)
        return counted.sum().to(outputs.dtype)

    def sample(
        self, outputs: Float[Tensor, "n c ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Num[Tensor, "n ..."]:
        """The smallest class j with u < pi_0 + ... + pi_j, the last sum taken as 1 whatever its rounding."""
        distribution = outputs.softmax(1).cumsum(1).narrow(1, 0, outputs.shape[1] - 1)
        labels = (uniforms.to(outputs).unsqueeze(1) >= distribution).sum(1)
        counted = self._counted(outputs, targets)
        return labels if counted is None else labels.where(counted, self.ignore_index)

    def score(
        self, outputs: Float[Tensor, "n c ..."], labels: Num[Tensor, "n ..."]
    ) -> Float[Tensor, "n c ..."]:
        """The residual pi - e_y in every row that counts."""
        counted = (labels != self.ignore_index).unsqueeze(1)
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        chosen = labels.unsqueeze(1) == classes.view(-1, *(1 for _ in outputs.shape[2:]))
        return (outputs.softmax(1) - chosen.to(outputs.dtype)) * counted

    def curvature(
        self,
        outputs: Float[Tensor, "n c ..."],
        targets: Num[Tensor, "n ..."] | None,
        v: Float[Tensor, "n c ..."],
    ) -> Float[Tensor, "n c ..."]:
        """The product pi v - pi (pi . v) in every row that counts."""
        pi = outputs.softmax(1)
        product = pi * v
        product = product - pi * product.sum(1, keepdim=True)
        counted = self._counted(outputs, targets)
        return product if counted is None else product * counted.unsqueeze(1)

    def _counted(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """Which rows count; None when all do (no targets, or targets that are class probabilities)."""
        if targets is None or targets.is_floating_point() or targets.shape == outputs.shape:
            return None
        return targets != self.ignore_index


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Yes-or-no labels with pi = logistic(z), one an output element: Q = diag(pi (1 - pi))."""

    def sample(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Num[Tensor, "n ..."]:
        """1 where the uniform reaches the probability of 0."""
        return (uniforms.to(outputs) >= torch.sigmoid(-outputs)).to(outputs.dtype)

    def score(self, outputs: Float[Tensor, "n ..."], labels: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The residual pi - y, elementwise."""
        return outputs.sigmoid() - labels

    def curvature(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, v: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The product pi (1 - pi) v, elementwise."""
        return outputs.sigmoid() * torch.sigmoid(-outputs) * v


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent normal labels around z, one an output element: Q = I / variance.

    Args:
        reduction: "mean" or "sum" over the output elements.
        variance: of a label; 0.5 makes -log p the squared error up to a constant, which is what MSELoss adds
            up.
    """

    variance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("variance", self.variance, low=0.0, open_low=True)

    def sample(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Num[Tensor, "n ..."]:
        """Outputs plus the normal quantile of the uniform."""
        eps = torch.finfo(outputs.dtype).eps
        inside = uniforms.to(outputs).clamp(eps, 1 - eps)  # the quantiles of 0 and 1 are infinite
        quantiles: Tensor = torch.special.ndtri(inside) * self.variance**0.5
        return outputs + quantiles

    def score(self, outputs: Float[Tensor, "n ..."], labels: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """(z - y) / variance, elementwise."""
        return (outputs - labels) / self.variance

    def curvature(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, v: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The product v / variance."""
        return v / self.variance


_FUNCTIONS: dict[Callable[..., Any], type[Likelihood]] = {
    functional.cross_entropy: Categorical,
    functional.nll_loss: Categorical,
    functional.binary_cross_entropy_with_logits: Bernoulli,
    functional.mse_loss: Gaussian,
}
_MODULES: dict[type[nn.Module], type[Likelihood]] = {
    nn.CrossEntropyLoss: Categorical,
    nn.NLLLoss: Categorical,
    nn.BCEWithLogitsLoss: Bernoulli,
    nn.MSELoss: Gaussian,
}
_REMEDY = (
    "Pass likelihood=Categorical(), Bernoulli() or Gaussian() if the loss is one of these up to a factor, "
    'or avoid sampled labels: probe_vector="gradient", divergence="gauss-newton".'
)


def infer_likelihood(loss_fn: LossFn) -> Likelihood:
    """The likelihood whose negative logarithm ``loss_fn`` is, up to a constant.

    Known are CrossEntropyLoss and NLLLoss (categorical), BCEWithLogitsLoss (Bernoulli) and MSELoss (Gaussian
    of variance 1/2), as modules or functions of torch.nn, also under functools.partial; ``reduction`` and
    ``ignore_index`` are respected, label smoothing changes nothing.

    Args:
        loss_fn: the loss, called as loss_fn(outputs, targets).

    Returns:
        The likelihood, with the loss's reduction.

    Raises:
        ValueError: the loss is none of these, is weighted, or does not reduce to a scalar.
    """
    options: dict[str, Any]
    if isinstance(loss_fn, nn.Module) and type(loss_fn) in _MODULES:
        kind = _MODULES[type(loss_fn)]
        names = ("reduction", "ignore_index", "weight", "pos_weight")
        options = {name: getattr(loss_fn, name, None) for name in names}
    else:
        options = {}
        function = loss_fn
        while isinstance(function, partial):
            options = {**function.keywords, **options}
            function = function.func
        if function not in _FUNCTIONS:
            raise ValueError(f"loss_fn={loss_fn!r} is not a likelihood known here. {_REMEDY}")
        kind = _FUNCTIONS[function]
    if options.get("weight") is not None or options.get("pos_weight") is not None:
        raise ValueError(f"loss_fn={loss_fn!r} weights its classes, so it is not a likelihood. {_REMEDY}")
    reduction = options.get("reduction") or "mean"
    if reduction not in ("mean", "sum"):
        raise ValueError(f"loss_fn={loss_fn!r} has reduction={reduction!r}; use 'mean' or 'sum'.")
    ignore_index = options.get("ignore_index")
    if kind is Categorical and ignore_index is not None:
        return Categorical(reduction, ignore_index)
    return kind(reduction)
