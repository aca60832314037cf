"""Losses at the end of a network, with the likelihood each one stands for.

Every loss is a mean over the n examples of the batch. Derivatives are taken in the network's last state
x_N (n, k); second derivatives couple no two examples, so they come as n blocks of size (k, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from llqr_sam_ref.exact._arrays import Array, check_matrix
from llqr_sam_ref.exact.stages import log_softmax, softmax_covariance


class Loss(Protocol):
    """What the network asks of a loss; ``t`` are prepared targets (n, k)."""

    def targets(self, y: ArrayLike, n: int, k: int) -> Array:
        """Labels or values y, checked and brought to shape (n, k)."""

    def value(self, x: Array, t: Array) -> float:
        """l(x_N), a mean over examples."""

    def gradient(self, x: Array, t: Array) -> Array:
        """The slope of l, (n, k)."""

    def hessian(self, x: Array, t: Array) -> Array:
        """The second derivative of l, blocks (n, k, k)."""

    def divergence(self, x0: Array, x: Array) -> float:
        """Mean Kullback-Leibler divergence of the likelihood at x from the one at x0."""

    def divergence_terms(self, x: Array) -> tuple[Array, Array]:
        """Slope (n, k) and second derivative (n, k, k) of the divergence at x0 = x, frozen part dropped."""

    def draws(self, x: Array) -> tuple[Array, Array]:
        """Weights (m, n) and targets (m, n, k): a finite law with the likelihood's score covariance."""


def _class_targets(y: ArrayLike, n: int, k: int, smoothing: float) -> Array:
    """(1 - s) one-hot + s / k."""
    labels = np.asarray(y)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"y has shape {labels.shape} and type {labels.dtype}; pass {n} integer labels, one per example."
        )
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= k:
        raise ValueError(
            f"y holds labels from {labels.min()} to {labels.max()}; the network has classes 0 to {k - 1}."
        )
    t: Array = (1.0 - smoothing) * np.eye(k)[labels] + smoothing / k
    return t


@dataclass(frozen=True)
class CrossEntropy:
    """l(x_N) = -(1/n) sum_b t_b . log softmax(x_N)_b on logits; t is one-hot, smoothed by s.

    The likelihood is categorical with probabilities pi = softmax(x_N).

    Attributes:
        label_smoothing: s in [0, 1); targets are (1 - s) one-hot + s / k.

    Source: book, chapter 3.
    """

    label_smoothing: float = 0.0

    def targets(self, y: ArrayLike, n: int, k: int) -> Array:
        """Smoothed one-hot rows from integer labels (n,)."""
        return _class_targets(y, n, k, self.label_smoothing)

    def value(self, x: Array, t: Array) -> float:
        """-(1/n) sum t . log pi."""
        loss: float = -(t * log_softmax(x)).sum() / len(x)
        return loss

    def gradient(self, x: Array, t: Array) -> Array:
        """(pi - t) / n."""
        slope: Array = (np.exp(log_softmax(x)) - t) / len(x)
        return slope

    def hessian(self, x: Array, t: Array) -> Array:
        """(diag pi - pi pi') / n, whatever the label."""
        return softmax_covariance(x) / len(x)

    def divergence(self, x0: Array, x: Array) -> float:
        """(1/n) sum_b sum_k pi0 (log pi0 - log pi)."""
        before = log_softmax(x0)
        return float((np.exp(before) * (before - log_softmax(x))).sum() / len(x))

    def divergence_terms(self, x: Array) -> tuple[Array, Array]:
        """Slope 0; curvature (1/n) sum_y pi_y (e_y - pi)(e_y - pi)', the expected score outer product."""
        pi = np.exp(log_softmax(x))
        score = np.eye(pi.shape[1]) - pi[:, None, :]  # (n, y, k)
        return np.zeros_like(x), np.einsum("by,byk,byl->bkl", pi, score, score) / len(x)

    def draws(self, x: Array) -> tuple[Array, Array]:
        """Every label, with its probability."""
        n, k = x.shape
        return np.exp(log_softmax(x)).T, np.broadcast_to(np.eye(k)[:, None, :], (k, n, k))


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """l(x_N) = -(1/n) sum_b t_b . x_b on log-probabilities x_N; the network ends in a log-softmax stage.

    The same loss as ``CrossEntropy`` with the last nonlinearity moved into the network: now the loss is
    linear, and the curvature is the stage's.

    Attributes:
        label_smoothing: s in [0, 1); targets are (1 - s) one-hot + s / k.

    Source: book, chapter 14 (logits or log-probabilities).
    """

    label_smoothing: float = 0.0

    def targets(self, y: ArrayLike, n: int, k: int) -> Array:
        """Smoothed one-hot rows from integer labels (n,)."""
        return _class_targets(y, n, k, self.label_smoothing)

    def value(self, x: Array, t: Array) -> float:
        """-(1/n) sum t . x."""
        loss: float = -(t * x).sum() / len(x)
        return loss

    def gradient(self, x: Array, t: Array) -> Array:
        """-t / n."""
        return -t / len(x)

    def hessian(self, x: Array, t: Array) -> Array:
        """Zero: the loss is linear."""
        return np.zeros((*x.shape, x.shape[1]))

    def divergence(self, x0: Array, x: Array) -> float:
        """(1/n) sum_b sum_k exp(x0) (x0 - x)."""
        return float((np.exp(x0) * (x0 - x)).sum() / len(x))

    def divergence_terms(self, x: Array) -> tuple[Array, Array]:
        """Slope -pi / n, curvature 0: all of the Fisher matrix comes from the log-softmax stage."""
        return -np.exp(x) / len(x), np.zeros((*x.shape, x.shape[1]))

    def draws(self, x: Array) -> tuple[Array, Array]:
        """Every label, with its probability."""
        n, k = x.shape
        return np.exp(x).T, np.broadcast_to(np.eye(k)[:, None, :], (k, n, k))


@dataclass(frozen=True)
class SquaredError:
    """l(x_N) = (1/n) sum_b |x_b - t_b|^2, summed over outputs, averaged over examples.

    The likelihood is Gaussian around x_N with variance 1/2 in each output, whose negative logarithm is the
    loss up to a constant. One example and one output give (x_N - t)^2, the two-weight network's loss.

    Source: book, chapters 3 and 14.
    """

    def targets(self, y: ArrayLike, n: int, k: int) -> Array:
        """The values (n, k) themselves."""
        return check_matrix("y", y, n, k)

    def value(self, x: Array, t: Array) -> float:
        """(1/n) sum |x - t|^2."""
        loss: float = ((x - t) ** 2).sum() / len(x)
        return loss

    def gradient(self, x: Array, t: Array) -> Array:
        """2 (x - t) / n."""
        slope: Array = 2.0 * (x - t) / len(x)
        return slope

    def hessian(self, x: Array, t: Array) -> Array:
        """2 I / n."""
        return np.broadcast_to(2.0 * np.eye(x.shape[1]) / len(x), (*x.shape, x.shape[1]))

    def divergence(self, x0: Array, x: Array) -> float:
        """(1/n) sum |x - x0|^2, the divergence of two Gaussians of variance 1/2."""
        return float(((x - x0) ** 2).sum() / len(x))

    def divergence_terms(self, x: Array) -> tuple[Array, Array]:
        """Slope 0; curvature 4 (variance 1/2) I / n, the expected outer product of the scores 2 (x - y)."""
        score_covariance = 4.0 * 0.5 * np.eye(x.shape[1])
        return np.zeros_like(x), np.broadcast_to(score_covariance / len(x), (*x.shape, x.shape[1]))

    def draws(self, x: Array) -> tuple[Array, Array]:
        """Points x +- sqrt(k / 2) e_j, equally likely: mean x and covariance I / 2, as the Gaussian has."""
        n, k = x.shape
        offsets = np.sqrt(k / 2.0) * np.vstack((np.eye(k), -np.eye(k)))
        return np.full((2 * k, n), 1.0 / (2 * k)), x + offsets[:, None, :]


LOSSES = ("cross-entropy", "negative-log-likelihood", "squared-error")
