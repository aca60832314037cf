"""The stages a network is made of, each with its first derivatives and the bend of its Hamiltonian.

A stage maps a state x (n examples, width) and a control w (the stage's weights) to the next state
f(x, w). The batch is one long state: row after row, so derivatives have n * width rows or columns. With a
costate lambda for the next state, the Hamiltonian is sum(lambda * f(x, w)); its second derivatives are the
stage costs Q (in x), R (in w) and M (mixed). A dense stage has only M, an elementwise stage only Q.

Everything but the costs also runs on complex numbers, which is how derivatives are checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.exact._arrays import Array


class Stage(Protocol):
    """What the network asks of a stage; shapes as in the module's docstring."""

    @property
    def inputs(self) -> int:
        """Width of the state that enters."""

    @property
    def outputs(self) -> int:
        """Width of the state that leaves."""

    @property
    def size(self) -> int:
        """Number of weights, zero for a passive stage."""

    def forward(self, w: Array, x: Array) -> Array:
        """The next state f(x, w), (n, outputs)."""

    def pullback(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array]:
        """A'lambda as (n, inputs) and B'lambda as (size,): backpropagation through one stage."""

    def jacobians(self, w: Array, x: Array) -> tuple[Array, Array]:
        """A (n outputs, n inputs) and B (n outputs, size)."""

    def costs(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array, Array]:
        """Q, R, M: the second derivatives of sum(costate * f) in (x, x), (w, w) and (w, x)."""


@dataclass(frozen=True)
class Dense:
    """A dense stage f(x, w) = x W' + b; w holds W (outputs, inputs) row by row, then b.

    It is bilinear, so Q = R = 0, and M, the costate itself, carries all of its curvature.

    Attributes:
        inputs: width of the state x.
        outputs: width of the next state f.
        bias: whether the stage has a bias b.

    Source: book, chapter 14 (which stage contributes what).
    """

    inputs: int
    outputs: int
    bias: bool = True

    @property
    def size(self) -> int:
        """Number of weights: outputs * inputs, plus outputs with a bias."""
        return self.outputs * (self.inputs + self.bias)

    def kernel(self, w: Array) -> Array:
        """W (outputs, inputs)."""
        return w[: self.outputs * self.inputs].reshape(self.outputs, self.inputs)

    def forward(self, w: Array, x: Array) -> Array:
        """The affine map x W' + b, (n, outputs)."""
        z: Array = x @ self.kernel(w).T
        return z + w[self.outputs * self.inputs :] if self.bias else z

    def pullback(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array]:
        """A'lambda = lambda W, and B'lambda = (lambda'x, sum of lambda) as one vector."""
        by_kernel = (costate.T @ x).ravel()
        by_weights = np.concatenate((by_kernel, costate.sum(axis=0))) if self.bias else by_kernel
        return costate @ self.kernel(w), by_weights

    def jacobians(self, w: Array, x: Array) -> tuple[Array, Array]:
        """A = I_n (x) W; row (b, o) of B holds x_b at the kernel's row o and 1 at bias o."""
        n, eye = len(x), np.eye(self.outputs)
        A = np.kron(np.eye(n), self.kernel(w))
        B = np.einsum("op,bi->bopi", eye, x).reshape(n * self.outputs, -1)
        return A, np.hstack((B, np.tile(eye, (n, 1)))) if self.bias else B

    def costs(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array, Array]:
        """Q = 0, R = 0, and M = lambda_(b, o) where the weight's input is the state's coordinate."""
        n = len(x)
        M = np.zeros((self.size, n * self.inputs))
        M[: self.outputs * self.inputs] = np.einsum("bo,ij->oibj", costate, np.eye(self.inputs)).reshape(
            self.outputs * self.inputs, -1
        )
        return np.zeros((n * self.inputs, n * self.inputs)), np.zeros((self.size, self.size)), M


@dataclass(frozen=True)
class Activation:
    """A function of one number, a, with its first and second derivative, and where to find them.

    Attributes:
        value: a(z).
        slope: a'(z).
        bend: a''(z).
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    bend: Callable[[Array], Array]


def _logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _softplus(z: Array) -> Array:
    """log(1 + exp(z)) without overflow, on complex numbers too."""
    positive = z.real > 0
    return np.where(positive, z, 0.0) + np.log1p(np.exp(np.where(positive, -z, z)))


ACTIVATIONS = {
    "identity": Activation(lambda z: z, np.ones_like, np.zeros_like),
    "relu": Activation(
        lambda z: np.where(z.real > 0, z, 0.0), lambda z: np.where(z.real > 0, 1.0, 0.0), np.zeros_like
    ),
    "softplus": Activation(_softplus, _logistic, lambda z: _logistic(z) * (1.0 - _logistic(z))),
    "tanh": Activation(
        np.tanh, lambda z: 1.0 - np.tanh(z) ** 2, lambda z: -2.0 * np.tanh(z) * (1.0 - np.tanh(z) ** 2)
    ),
}


@dataclass(frozen=True)
class Passive:
    """What stages without weights share: the width stays as it is, and B, R and M are empty.

    Attributes:
        width: width of x and f.

    Source: book, chapter 14 (which stage contributes what).
    """

    width: int

    @property
    def inputs(self) -> int:
        """The width."""
        return self.width

    @property
    def outputs(self) -> int:
        """The width."""
        return self.width

    @property
    def size(self) -> int:
        """No weights."""
        return 0


@dataclass(frozen=True)
class Elementwise(Passive):
    """A passive stage f(x) = a(x), coordinate by coordinate: only Q = diag(lambda * a''(x)) bends.

    For ReLU a'' = 0 wherever it exists, so the stage costs nothing; at the kink a' is taken as 0.

    Attributes:
        width: width of x and f.
        name: one of ``ACTIVATIONS``.

    Source: book, chapter 14 (which stage contributes what).
    """

    name: str

    def forward(self, w: Array, x: Array) -> Array:
        """a(x), (n, width)."""
        return ACTIVATIONS[self.name].value(x)

    def pullback(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array]:
        """A'lambda = lambda * a'(x), and nothing for the weights."""
        return costate * ACTIVATIONS[self.name].slope(x), w

    def jacobians(self, w: Array, x: Array) -> tuple[Array, Array]:
        """A = diag a'(x), and a B without columns."""
        return np.diag(ACTIVATIONS[self.name].slope(x).ravel()), np.zeros((x.size, 0))

    def costs(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array, Array]:
        """Q = diag(lambda * a''(x)); R and M are empty."""
        Q = np.diag((costate * ACTIVATIONS[self.name].bend(x)).ravel())
        return Q, np.zeros((0, 0)), np.zeros((0, x.size))


@dataclass(frozen=True)
class LogSoftmax(Passive):
    """A passive stage from logits to log-probabilities, f(x) = x - log sum exp x, row by row.

    Q = -(sum of lambda_b) (diag pi_b - pi_b pi_b') for example b: with the Fisher costate -pi/n it is exactly
    the Fisher matrix of the logits.

    Attributes:
        width: number of classes.

    Source: book, chapter 14 (logits or log-probabilities).
    """

    def forward(self, w: Array, x: Array) -> Array:
        """Log-probabilities, (n, width)."""
        return log_softmax(x)

    def pullback(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array]:
        """A'lambda = lambda - pi * (sum of lambda), and nothing for the weights."""
        return costate - np.exp(log_softmax(x)) * costate.sum(axis=1, keepdims=True), w

    def jacobians(self, w: Array, x: Array) -> tuple[Array, Array]:
        """A = I - 1 pi' for each example, and a B without columns."""
        blocks = np.eye(self.width) - np.exp(log_softmax(x))[:, None, :]
        return block_diagonal(blocks), np.zeros((x.size, 0))

    def costs(self, w: Array, x: Array, costate: Array) -> tuple[Array, Array, Array]:
        """Q = -(sum of lambda_b) (diag pi_b - pi_b pi_b'); R and M are empty."""
        blocks = -costate.sum(axis=1)[:, None, None] * softmax_covariance(x)
        return block_diagonal(blocks), np.zeros((0, 0)), np.zeros((0, x.size))


def log_softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """The logarithm of softmax, log pi = z - log sum_k exp z_k, row by row and without overflow."""
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    log_pi: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_pi


def softmax_covariance(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k k"]:
    """diag(pi_b) - pi_b pi_b' for each row: the Hessian of log sum exp."""
    pi = np.exp(log_softmax(logits))
    covariance: Array = pi[:, :, None] * np.eye(pi.shape[1]) - pi[:, :, None] * pi[:, None, :]
    return covariance


def block_diagonal(blocks: Float[np.ndarray, "n a b"]) -> Float[np.ndarray, "rows columns"]:
    """One matrix with the n blocks on its diagonal."""
    n, a, b = blocks.shape
    matrix = np.zeros((n, a, n, b))
    matrix[np.arange(n), :, np.arange(n), :] = blocks
    return matrix.reshape(n * a, n * b)
