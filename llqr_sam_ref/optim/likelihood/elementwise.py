"""Labels that are independent from one output element to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Num
from torch import Tensor

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.optim.likelihood.base import Likelihood, check_weight


@dataclass(frozen=True, eq=False)
class Bernoulli(Likelihood):
    """Yes-or-no labels with pi = logistic(z), one per output element: Q = diag(pi (1 - pi)).

    Args:
        reduction: "mean" or "sum" over the output elements, or "batchmean".
        outputs: takes z from what the model returns.
        labels: takes the labels from the targets.
        pos_weight: of a yes, to be broadcast with z, as BCEWithLogitsLoss has it.
    """

    pos_weight: Float[Tensor, ...] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("pos_weight", self.pos_weight)

    def weights(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None
    ) -> Float[Tensor, "n ..."] | None:
        """``pos_weight`` where the target is a yes, 1 elsewhere."""
        if self.pos_weight is None:
            return None
        if targets is None:
            raise ValueError("pos_weight weighs elements by their targets, and targets is None; pass them.")
        return 1 + (self.pos_weight.to(outputs) - 1) * targets.to(outputs)

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
        """The product pi (1 - pi) v, elementwise, times the weight."""
        product = outputs.sigmoid() * torch.sigmoid(-outputs) * v
        weights = self.weights(outputs, targets)
        return product if weights is None else product * weights

    def slope(self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The gradient W pi - p y, p the weight of a yes and W = 1 + (p - 1) y: pi - y without weights."""
        weights = self.weights(outputs, targets)
        if weights is None or self.pos_weight is None:
            return self.score(outputs, targets)
        return weights * outputs.sigmoid() - self.pos_weight.to(outputs) * targets.to(outputs)


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """Independent normal labels around z, one per output element: Q = I / variance.

    Args:
        reduction: "mean" or "sum" over the output elements, or "batchmean".
        variance: of a label; 0.5 makes -log p the squared error up to a constant, which is what MSELoss adds
            up.
        outputs: takes z from what the model returns.
        labels: takes the labels from the targets.
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
