"""A feed-forward network as a control system: time = stage, state = activations, control = change of weights.

x_{i+1} = f_i(x_i, w_i), x_0 = the batch, L = l(x_N). Backpropagation is the costate equation

    lambda_N = grad l(x_N),   lambda_i = A_i' lambda_{i+1},   g_i = B_i' lambda_{i+1},

and the second-order model of L (or of a divergence) along the linearized network is a linear-quadratic
problem with costs Q_i, R_i, M_i, the second derivatives of the Hamiltonians lambda_{i+1}' f_i.

Every dense layer is a stage; every activation other than the identity is a passive stage after it.
All weights form one vector w: layer after layer, in each layer the kernel W (outputs, inputs) row by row,
then the bias. This is the order of torch's ``parameters_to_vector`` for a chain of ``Linear`` layers.

Source: LLQR, arXiv 2605.04230, section 4; book, chapters 14 and 15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_choice, check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_matrix, check_symmetric, check_vector
from llqr_sam_ref.exact.losses import LOSSES, CrossEntropy, Loss, NegativeLogLikelihood, SquaredError
from llqr_sam_ref.exact.lqr import Problem
from llqr_sam_ref.exact.stages import ACTIVATIONS, Dense, Elementwise, LogSoftmax, Stage, block_diagonal

DIVERGENCES = ("newton", "gauss-newton", "fisher")


@dataclass(frozen=True)
class Network:
    """A chain of dense layers and activations that ends in a loss.

    Attributes:
        widths: widths of the data, the hidden layers and the outputs.
        activation: "tanh", "relu", "softplus" or "identity" after every hidden layer (the last layer is
            linear), or one name per layer.
        loss: "cross-entropy" (on logits), "negative-log-likelihood" (on log-probabilities, with a log-softmax
            stage at the end) or "squared-error" (mean over examples of |output - target|^2).
        label_smoothing: s in [0, 1) of the two class losses; zero for squared error.
        bias: whether dense layers have one.

    Source: book, chapter 14.
    """

    widths: tuple[int, ...]
    activation: str | tuple[str, ...] = "tanh"
    loss: str = "cross-entropy"
    label_smoothing: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        """Check every choice.

        Raises:
            ValueError: fewer than two widths, one that is not a positive integer, a count of activations that
                does not fit, an unknown name, or smoothing outside [0, 1) or without classes.
        """
        if len(self.widths) < 2:
            raise ValueError(f"widths={self.widths!r} is too short; give inputs, hidden widths and outputs.")
        for i, width in enumerate(self.widths):
            check_count(f"widths[{i}]", width)
        names = self.activations
        if len(names) != len(self.widths) - 1:
            raise ValueError(
                f"activation={self.activation!r} has {len(names)} names; give one name, or one for each of"
                f" the {len(self.widths) - 1} dense layers."
            )
        for name in names:
            check_choice("activation", name, ACTIVATIONS)
        check_choice("loss", self.loss, LOSSES)
        check_number("label_smoothing", self.label_smoothing, low=0.0, high=1.0, open_high=True)
        if self.label_smoothing and self.loss == "squared-error":
            raise ValueError(
                f"label_smoothing={self.label_smoothing!r} needs classes; pass 0 with loss='squared-error'."
            )

    @property
    def activations(self) -> tuple[str, ...]:
        """One activation per dense layer."""
        if isinstance(self.activation, str):
            return (self.activation,) * (len(self.widths) - 2) + ("identity",)
        return tuple(self.activation)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages f_0, ..., f_{N-1}."""
        stages: list[Stage] = []
        for inputs, outputs, name in zip(self.widths, self.widths[1:], self.activations, strict=False):
            stages.append(Dense(inputs, outputs, self.bias))
            if name != "identity":
                stages.append(Elementwise(outputs, name))
        if self.loss == "negative-log-likelihood":
            stages.append(LogSoftmax(self.widths[-1]))
        return tuple(stages)

    @cached_property
    def end(self) -> Loss:
        """The loss l(x_N) with its derivatives."""
        if self.loss == "squared-error":
            return SquaredError()
        return (CrossEntropy if self.loss == "cross-entropy" else NegativeLogLikelihood)(self.label_smoothing)

    @property
    def dimension(self) -> int:
        """Number of weights d."""
        return sum(stage.size for stage in self.stages)

    def blocks(self, w: ArrayLike) -> tuple[Array, ...]:
        """The weights w_i of each stage; a passive stage gets an empty block.

        Args:
            w: all weights (d,), real or complex (a complex step differentiates through the network).

        Returns:
            N vectors of sizes ``stages[i].size``.
        """
        if isinstance(w, np.ndarray) and np.iscomplexobj(w):
            flat = check_vector("w", w.real, self.dimension) + 1j * check_vector("w", w.imag, self.dimension)
        else:
            flat = check_vector("w", w, self.dimension)
        return tuple(np.split(flat, np.cumsum([stage.size for stage in self.stages])[:-1]))

    def unflatten(self, w: ArrayLike) -> list[tuple[Array, Array]]:
        """The kernel W (outputs, inputs) and the bias (outputs,) of every dense layer.

        Args:
            w: all weights (d,), or anything laid out like them (a gradient, a step).

        Returns:
            One pair per dense layer; the bias is empty if the network has none.
        """
        return [
            (stage.kernel(block), block[stage.inputs * stage.outputs :])
            for stage, block in zip(self.stages, self.blocks(w), strict=True)
            if isinstance(stage, Dense)
        ]

    def flatten(self, layers: Sequence[tuple[ArrayLike, ArrayLike]]) -> Float[np.ndarray, " d"]:
        """All weights in one vector, the inverse of ``unflatten``.

        Args:
            layers: a kernel W (outputs, inputs) and a bias (outputs,) for every dense layer.

        Returns:
            w (d,).

        Raises:
            ValueError: a shape does not fit the widths.
        """
        shapes = [(b.shape, W.shape) for W, b in self.unflatten(np.zeros(self.dimension))]
        given = [(np.shape(b), np.shape(W)) for W, b in layers]
        if given != shapes:
            wanted = [shape[::-1] for shape in shapes]
            raise ValueError(
                f"layers has (kernel, bias) shapes {[shape[::-1] for shape in given]}; pass {wanted}."
            )
        return check_vector("layers", np.concatenate([np.ravel(part) for pair in layers for part in pair]))

    def random_weights(self, rng: np.random.Generator) -> Float[np.ndarray, " d"]:
        """Weights to start from: W ~ Normal(0, 1 / inputs), zero biases.

        Args:
            rng: the source of randomness.

        Returns:
            w (d,).
        """
        return self.flatten([
            (rng.standard_normal(W.shape) / np.sqrt(W.shape[1]), np.zeros_like(b))
            for W, b in self.unflatten(np.zeros(self.dimension))
        ])

    def states(self, w: ArrayLike, x: ArrayLike) -> tuple[Array, ...]:
        """The forward pass x_{i+1} = f_i(x_i, w_i).

        Args:
            w: all weights (d,).
            x: the batch x_0 (n, widths[0]).

        Returns:
            The N+1 states x_0, ..., x_N, each (n, width).
        """
        states = [check_matrix("x", x, columns=self.widths[0])]
        for stage, block in zip(self.stages, self.blocks(w), strict=True):
            states.append(stage.forward(block, states[-1]))
        return tuple(states)

    def targets(self, x: ArrayLike, y: ArrayLike) -> Float[np.ndarray, "n k"]:
        """The targets that the loss compares x_N with: y itself, or smoothed one-hot rows.

        Args:
            x: the batch (n, widths[0]).
            y: integer labels (n,), or values (n, widths[-1]) for squared error.

        Returns:
            Targets t (n, widths[-1]).
        """
        return self.end.targets(y, len(check_matrix("x", x)), self.widths[-1])

    def value(self, w: ArrayLike, x: ArrayLike, y: ArrayLike) -> float:
        """The loss L(w), a mean over the batch.

        Args:
            w: all weights (d,).
            x: the batch (n, widths[0]).
            y: integer labels (n,), or values (n, widths[-1]) for squared error.

        Returns:
            L(w).
        """
        return self.end.value(self.states(w, x)[-1], self.targets(x, y))

    def costates(self, w: ArrayLike, x: ArrayLike, y: ArrayLike) -> tuple[Array, ...]:
        """The backward pass lambda_N = grad l(x_N), lambda_i = A_i' lambda_{i+1}: dL/dx_i.

        Args:
            w: all weights (d,).
            x: the batch (n, widths[0]).
            y: integer labels (n,), or values (n, widths[-1]) for squared error.

        Returns:
            The N+1 costates lambda_0, ..., lambda_N, shaped like the states.
        """
        states = self.states(w, x)
        return self.pull(w, states, self.end.gradient(states[-1], self.targets(x, y)))[0]

    def gradient(self, w: ArrayLike, x: ArrayLike, y: ArrayLike) -> Float[np.ndarray, " d"]:
        """The gradient g of L, g_i = B_i' lambda_{i+1}.

        Args:
            w: all weights (d,).
            x: the batch (n, widths[0]).
            y: integer labels (n,), or values (n, widths[-1]) for squared error.

        Returns:
            g (d,).
        """
        states = self.states(w, x)
        return self.pull(w, states, self.end.gradient(states[-1], self.targets(x, y)))[1]

    def pull(self, w: ArrayLike, states: Sequence[Array], slope: Array) -> tuple[tuple[Array, ...], Array]:
        """Pull any slope at the end back through the network: costates, and the gradient by the weights.

        Args:
            w: all weights (d,).
            states: x_0, ..., x_N as ``states`` returns them.
            slope: derivative of some function of x_N, (n, width of x_N).

        Returns:
            The N+1 costates, and J' slope (d,).
        """
        costates, parts, blocks = [slope], [], self.blocks(w)
        for i in reversed(range(len(self.stages))):
            costate, part = self.stages[i].pullback(blocks[i], states[i], costates[-1])
            costates.append(costate)
            parts.append(part)
        return tuple(reversed(costates)), np.concatenate(parts[::-1])


def layerwise_lqr(
    network: Network,
    w: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    divergence: str = "newton",
    damping: float = 0.0,
    intermediate: Mapping[int, ArrayLike] | None = None,
) -> Problem:
    """The damped step of steepest descent as a linear-quadratic problem over layers.

    minimize g.Delta + 1/2 Delta'(G + mu I) Delta is the LQR with delta x_0 = 0, the network's A_i and B_i,
    the end's slope grad l(x_N), and as costs the second variation of phi(x_N):

        "newton"        phi = l: G is the Hessian of L;
        "gauss-newton"  phi = the quadratic part of l: costates zero, only the terminal cost, G = J'(hess l)J;
        "fisher"        phi = mean KL divergence from the frozen outputs: G is the Fisher matrix.

    With metrics S_i on changes of the state x_i, G gains the terms J_i'S_i J_i.

    Args:
        network: the network.
        w: all weights (d,).
        x: the batch (n, widths[0]); the state of the problem has n * width entries.
        y: integer labels (n,), or values (n, widths[-1]) for squared error.
        divergence: "newton", "gauss-newton" or "fisher".
        damping: mu >= 0, in units of curvature.
        intermediate: metrics S_i by state index i = 1, ..., N (1 is the first layer before its activation): a
            symmetric matrix (n * width, n * width), or a number s for s * I.

    Returns:
        The problem; its controls, concatenated, are a step Delta in the order of w.

    Raises:
        ValueError: unknown divergence, negative damping, or a state index that does not exist.

    Source: LLQR, arXiv 2605.04230, Theorem 4.1; book, chapters 14 and 15.
    """
    check_choice("divergence", divergence, DIVERGENCES)
    check_number("damping", damping, low=0.0)
    states = network.states(w, x)
    slope = network.end.gradient(states[-1], network.targets(x, y))
    if divergence == "fisher":
        terminal_slope, terminal = network.end.divergence_terms(states[-1])
    else:
        terminal = network.end.hessian(states[-1], network.targets(x, y))
        terminal_slope = slope if divergence == "newton" else np.zeros_like(slope)
    costates, _ = network.pull(w, states, terminal_slope)
    A, B, Q, R, M = [], [], [], [], []
    for i, (stage, block) in enumerate(zip(network.stages, network.blocks(w), strict=True)):
        A_i, B_i = stage.jacobians(block, states[i])
        Q_i, R_i, M_i = stage.costs(block, states[i], costates[i + 1])
        A.append(A_i)
        B.append(B_i)
        Q.append(Q_i)
        R.append(R_i + damping * np.eye(stage.size))
        M.append(M_i)
    Q.append(block_diagonal(terminal))
    for i, S in (intermediate or {}).items():
        if i not in range(1, len(Q)):
            raise ValueError(
                f"intermediate has a metric for state {i!r}; weights move the states 1, ..., {len(A)}."
            )
        size = len(Q[i])
        metric = S * np.eye(size) if isinstance(S, (int, float)) else S
        Q[i] = Q[i] + check_symmetric(f"intermediate[{i}]", metric, size)
    q = [np.zeros(x_i.size) for x_i in states[:-1]] + [slope.ravel()]
    return Problem(A, B, Q, R, M, q)


def two_weight_network() -> tuple[Network, Float[np.ndarray, "1 1"], Float[np.ndarray, "1 1"]]:
    """The two-weight network x_1 = w_0 x_0, x_2 = w_1 x_1 with loss (x_2 - 1)^2 at x_0 = 1: the banana.

    Returns:
        The network, its one example x and its one target y.

    Source: book, chapters 3, 14 and 15.
    """
    network = Network(widths=(1, 1, 1), activation="identity", loss="squared-error", bias=False)
    return network, np.ones((1, 1)), np.ones((1, 1))
