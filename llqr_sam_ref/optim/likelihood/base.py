"""What every likelihood can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Num, Shaped
from torch import Tensor

from llqr_sam_ref.errors import check_choice

LossFn = Callable[..., Tensor]
REDUCTIONS = ("mean", "sum", "batchmean")


@dataclass(frozen=True, eq=False)
class Likelihood(ABC):
    """p(y | z) for outputs z, as a product of independent terms.

    Args:
        reduction: "mean", "sum" or "batchmean": whether the loss that stands for it divides the sum of the terms by
            their number, by 1, or by the length of the outputs' first axis.
        outputs: takes z from what the model returns, ``operator.attrgetter("logits")`` for instance, or makes it of
            that (``lambda z: z / temperature``); None where the model returns z itself.
        labels: takes the labels from what is given as targets; None where the targets are the labels.
    """

    reduction: str = "mean"
    outputs: Callable[[Any], Tensor] | None = field(default=None, kw_only=True)
    labels: Callable[[Any], Tensor | None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, REDUCTIONS)
        for name, example in (("outputs", 'attrgetter("logits")'), ("labels", 'itemgetter("labels")')):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} cannot be called; pass a function, for instance "
                    f"operator.{example}."
                )

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare]
        return all(
            isinstance(b, Tensor) and torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash((type(self), self.reduction))

    def read(self, outputs: Any) -> Float[Tensor, "n ..."]:
        """The tensor z in what the model returns.

        Args:
            outputs: of the model.

        Returns:
            z.

        Raises:
            ValueError: what ``outputs`` gives is not a floating-point tensor.
        """
        z = outputs if self.outputs is None else self.outputs(outputs)
        if not isinstance(z, Tensor) or not z.is_floating_point():
            where = "the module returns" if self.outputs is None else f"outputs={self.outputs!r} gives"
            raise ValueError(
                f"{where} a {type(z).__name__}, not one floating-point tensor; say where the labels' z is: "
                f'likelihood={type(self).__name__}(outputs=operator.attrgetter("logits")).'
            )
        return z

    def read_labels(self, targets: Any) -> Num[Tensor, "n ..."] | None:
        """The labels in what is given as targets.

        Args:
            targets: as the loss takes them, or None.

        Returns:
            The labels; None where there are none.

        Raises:
            ValueError: what ``labels`` gives is not a tensor.
        """
        if targets is None:
            return None
        y = targets if self.labels is None else self.labels(targets)
        if y is not None and not isinstance(y, Tensor):
            what = "targets is" if self.labels is None else f"labels={self.labels!r} gives"
            raise ValueError(
                f"{what} a {type(y).__name__}, not a tensor; say where the labels are: "
                f'likelihood={type(self).__name__}(labels=operator.itemgetter("labels")).'
            )
        return y

    def uniforms_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many uniforms ``sample`` needs for outputs of this shape; the first axis stays the examples."""
        return tuple(output_shape)

    def terms(self, outputs: Tensor, targets: Tensor | None = None) -> Shaped[Tensor, ""]:
        """The weights of the terms, added up (0-d, on the outputs' device): what a mean loss divides by."""
        return torch.full((), outputs.numel(), dtype=outputs.dtype, device=outputs.device)

    def divisor(self, outputs: Tensor, targets: Tensor | None = None) -> Shaped[Tensor, ""]:
        """What the loss divides the sum of its terms by (0-d): their number, 1, or the number of rows of z."""
        if self.reduction == "mean":
            return self.terms(outputs, targets)
        count = 1 if self.reduction == "sum" else len(outputs)
        return torch.full((), count, dtype=outputs.dtype, device=outputs.device)

    def weights(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None
    ) -> Float[Tensor, ...] | None:
        """How much the curvature of each term counts, to multiply outputs by; None where all count 1."""
        return None

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
        """The product Q v; Q = E[weight score score^T] is the outputs' Fisher matrix, summed over the terms."""

    def slope(self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The gradient at z of the loss's sum of terms, for labels as given."""
        return self.score(outputs, targets)

    def sampled_slope(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Float[Tensor, "n ..."]:
        """Scores of labels drawn from p(. | z), each times the root of its term's weight: their covariance is Q."""
        score = self.score(outputs, self.sample(outputs, targets, uniforms))
        weights = self.weights(outputs, targets)
        return score if weights is None else score * weights.sqrt()

    def candidates(self, outputs: Float[Tensor, "n ..."]) -> tuple[Likelihood, ...]:
        """What this likelihood may mean for outputs of this shape; the loss decides."""
        return (self,)

    def seen(self, outputs: Float[Tensor, "n ..."], slope: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """What a slope at z comes to where z itself is normalized; else the slope."""
        return slope


def check_weight(name: str, weight: object) -> None:
    """Refuse weights of classes that are not a tensor of finite numbers >= 0.

    Args:
        name: of the argument.
        weight: its value; None is fine.

    Raises:
        ValueError: it is something else.
    """
    if weight is None:
        return
    if not isinstance(weight, Tensor) or not bool((weight >= 0).all() & weight.isfinite().all()):
        raise ValueError(f"{name}={weight!r} is not a tensor of finite numbers >= 0; pass the loss's own.")
