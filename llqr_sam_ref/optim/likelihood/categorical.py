"""Classes, one label per row of logits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Num, Shaped
from torch import Tensor

from llqr_sam_ref.errors import check_number
from llqr_sam_ref.optim.likelihood.base import Likelihood, check_weight


@dataclass(frozen=True, eq=False)
class Categorical(Likelihood):
    """Classes with probabilities softmax(z): Q = diag(pi) - pi pi^T in every row.

    Log-probabilities may be given for logits: their softmax is the same and so is everything below.
    Label smoothing changes neither the labels' distribution nor Q.

    Args:
        reduction: "mean" or "sum" over the rows that are not ignored, or "batchmean".
        ignore_index: target of rows that do not count.
        outputs: takes the logits from what the model returns.
        labels: takes the labels from the targets.
        class_axis: of the logits; None for axis 1, or for the last one where the loss has its classes there.
        weight: of each class (c,), as CrossEntropyLoss has it: a row counts as much as the class of its target.
        label_smoothing: of the loss, in [0, 1].
    """

    ignore_index: int = -100
    class_axis: int | None = field(default=None, kw_only=True)
    weight: Float[Tensor, " c"] | None = field(default=None, kw_only=True, repr=False)
    label_smoothing: float = field(default=0.0, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("label_smoothing", self.label_smoothing, low=0.0, high=1.0)
        check_weight("weight", self.weight)

    def uniforms_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One uniform per row: the output's shape without the classes' axis."""
        axis = self._axis(len(output_shape))
        return (*output_shape[:axis], *output_shape[axis + 1 :])

    def terms(self, outputs: Tensor, targets: Tensor | None = None) -> Shaped[Tensor, ""]:
        """The number of rows whose target is not ``ignore_index``, each as often as its class weighs."""
        labels = self._labels(outputs, targets)
        if labels is None or labels.is_floating_point():
            rows = outputs.numel() // outputs.shape[self._axis(outputs.ndim)]
            return torch.full((), rows, dtype=outputs.dtype, device=outputs.device)
        counted = (labels != self.ignore_index).to(outputs.dtype)
        if self.weight is not None:
            counted = counted * self.weight.to(counted)[labels.clamp(min=0)]
        return counted.sum().to(outputs.device)

    def weights(
        self, outputs: Float[Tensor, "n ..."], targets: Num[Tensor, "n ..."] | None
    ) -> Float[Tensor, "n ..."] | None:
        """The weight of each row's target, smoothed as the target is; 0 where it is ignored."""
        labels = self._labels(outputs, targets)
        if labels is None and self.weight is not None:
            raise ValueError("weight weighs every row by its target, and targets is None; pass the targets.")
        if labels is None:
            return None
        axis = self._axis(outputs.ndim)
        if labels.is_floating_point():
            return None if self.weight is None else self._weighted(outputs, labels).sum(axis, keepdim=True)
        counted = (labels != self.ignore_index).to(outputs.dtype)
        if self.weight is not None:
            weight, smoothing = self.weight.to(outputs), self.label_smoothing
            counted = counted * ((1 - smoothing) * weight[labels.clamp(min=0)] + smoothing * weight.mean())
        return counted.unsqueeze(axis)

    def sample(
        self, outputs: Float[Tensor, "n c ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Num[Tensor, "n ..."]:
        """The smallest class j with u < pi_0 + ... + pi_j, the last sum taken as 1 whatever its rounding."""
        drawn = self._drawn(outputs, uniforms)
        labels = self._labels(outputs, targets)
        if labels is None or labels.is_floating_point():
            return drawn
        return drawn.where(labels != self.ignore_index, self.ignore_index)

    def sampled_slope(
        self, outputs: Float[Tensor, "n c ..."], targets: Num[Tensor, "n ..."] | None, uniforms: Tensor
    ) -> Float[Tensor, "n c ..."]:
        """The score pi - e_j in every row, times the root of its weight, which is 0 where the target is ignored."""
        # A class that is ``ignore_index``, that of padding for instance, may be drawn and counts.
        drawn = self._drawn(outputs, uniforms)
        score = outputs.softmax(self._axis(outputs.ndim)) - self._one_hot(outputs, drawn)
        weights = self.weights(outputs, targets)
        return score if weights is None else score * weights.sqrt()

    def _drawn(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        axis = self._axis(outputs.ndim)
        distribution = outputs.softmax(axis).cumsum(axis).narrow(axis, 0, outputs.shape[axis] - 1)
        return (uniforms.to(outputs).unsqueeze(axis) >= distribution).sum(axis)

    def score(
        self, outputs: Float[Tensor, "n c ..."], labels: Num[Tensor, "n ..."]
    ) -> Float[Tensor, "n c ..."]:
        """The residual pi - e_y in every row that counts."""
        axis = self._axis(outputs.ndim)
        counted = (labels != self.ignore_index).unsqueeze(axis)
        return (outputs.softmax(axis) - self._one_hot(outputs, labels)) * counted

    def curvature(
        self,
        outputs: Float[Tensor, "n c ..."],
        targets: Num[Tensor, "n ..."] | None,
        v: Float[Tensor, "n c ..."],
    ) -> Float[Tensor, "n c ..."]:
        """The product pi v - pi (pi . v) in every row, times its weight."""
        axis = self._axis(outputs.ndim)
        pi = outputs.softmax(axis)
        product = pi * v
        product = product - pi * product.sum(axis, keepdim=True)
        weights = self.weights(outputs, targets)
        return product if weights is None else product * weights

    def slope(
        self, outputs: Float[Tensor, "n c ..."], targets: Num[Tensor, "n ..."]
    ) -> Float[Tensor, "n c ..."]:
        """The gradient W pi - y w_c, y the smoothed target and W the sum of y w_c: pi - e_y without weights."""
        labels = self._labels(outputs, targets)
        assert labels is not None
        weighted = self._weighted(outputs, labels)
        axis = self._axis(outputs.ndim)
        return outputs.softmax(axis) * weighted.sum(axis, keepdim=True) - weighted

    def candidates(self, outputs: Float[Tensor, "n ..."]) -> tuple[Likelihood, ...]:
        """Classes on axis 1, or on the last one."""
        if self.class_axis is not None or outputs.ndim < 3:
            return (self,)
        return self, replace(self, class_axis=outputs.ndim - 1)

    def seen(self, outputs: Float[Tensor, "n ..."], slope: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Where z are log-probabilities, the slope in the logits behind them: theirs is free of pi (1 . slope)."""
        axis = self._axis(outputs.ndim)
        total = outputs.logsumexp(axis, keepdim=True)
        if float(total.abs().max()) > 1e3 * torch.finfo(outputs.dtype).eps:
            return slope
        return slope - outputs.softmax(axis) * slope.sum(axis, keepdim=True)

    def _axis(self, ndim: int) -> int:
        axis = 1 if self.class_axis is None else self.class_axis
        if not -ndim <= axis < ndim:
            raise ValueError(f"class_axis={axis} is no axis of logits with {ndim} of them.")
        return axis % ndim

    def _labels(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """Targets row by row, or the classes' probabilities; None where there are none."""
        if targets is None:
            return None
        if targets.is_floating_point():
            return targets.reshape(outputs.shape)
        rows = self.uniforms_shape(tuple(outputs.shape))
        if targets.shape == rows:
            return targets
        if targets.numel() != torch.Size(rows).numel():
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} do not label logits of shape {tuple(outputs.shape)} with "
                f"classes along axis {self._axis(outputs.ndim)}; pass likelihood=Categorical(class_axis=...)."
            )
        return targets.reshape(rows)  # as a loss does that flattens inside

    def _one_hot(self, outputs: Tensor, labels: Tensor) -> Tensor:
        axis = self._axis(outputs.ndim)
        classes = torch.arange(outputs.shape[axis], device=outputs.device)
        shape = [1] * outputs.ndim
        shape[axis] = -1
        return (labels.unsqueeze(axis) == classes.view(shape)).to(outputs.dtype)

    def _weighted(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The targets' probabilities, smoothed, times the classes' weights; 0 where a target is ignored."""
        axis = self._axis(outputs.ndim)
        if labels.is_floating_point():
            y, counted = labels.to(outputs), outputs.new_ones(())
        else:
            y = self._one_hot(outputs, labels)
            counted = (labels != self.ignore_index).unsqueeze(axis).to(outputs.dtype)
        y = ((1 - self.label_smoothing) * y + self.label_smoothing / outputs.shape[axis]) * counted
        if self.weight is None:
            return y
        shape = [1] * outputs.ndim
        shape[axis] = -1
        return y * self.weight.to(outputs).view(shape)
