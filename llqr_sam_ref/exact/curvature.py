"""Jacobian, Gauss-Newton, Fisher and Hessian matrices of a network, each by two independent routes.

Route "stages" assembles the matrix from the stages of the linear-quadratic problem: A_i, B_i and the second
derivatives of the Hamiltonians. The other route uses none of these: a complex step through the forward pass
(Jacobian, Gauss-Newton), a complex step through backpropagation (Hessian), or outer products of
backpropagated scores (Fisher). A complex step has no cancellation: with t = 1e-30 the imaginary part of
f(w + i t v) / t is the derivative to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.exact._arrays import Array, check_matrix, check_vector
from llqr_sam_ref.exact.lqr import dense
from llqr_sam_ref.exact.network import Network, layerwise_lqr
from llqr_sam_ref.exact.stages import block_diagonal

STEP = 1e-30


def complex_step(
    function: Callable[[Complex[np.ndarray, " d"]], Array], w: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "m d"]:
    """The Jacobian of an analytic function, column by column: Im f(w + i t e_j) / t.

    Args:
        function: takes complex points (d,) and returns a vector (m,).
        w: where, (d,), real.

    Returns:
        The matrix of derivatives (m, d).

    Source: Squire and Trapp, Using complex variables to estimate derivatives (SIAM Review 40, 1998).
    """
    w = check_vector("w", w)
    columns = [function(w + 1j * STEP * direction).imag / STEP for direction in np.eye(w.size)]
    return np.stack(columns, axis=-1)


def jacobian(
    network: Network, w: ArrayLike, x: ArrayLike, *, state: int = -1, route: str = "stages"
) -> Float[np.ndarray, "m d"]:
    """J_i = dx_i/dw, by J_{i+1} = A_i J_i + B_i or by a complex step through the forward pass.

    Args:
        network: the network.
        w: all weights (d,).
        x: the batch (n, widths[0]).
        state: i in 0, ..., N; -1 for the last one.
        route: "stages" or "complex-step".

    Returns:
        The Jacobian (n * width of x_i, d); row (b, k) is example b, coordinate k.

    Raises:
        ValueError: the state does not exist, or the route is unknown.

    Source: book, chapter 14 (linearized rollout).
    """
    check_choice("route", route, ("stages", "complex-step"))
    last = len(network.stages)
    if state not in range(-1, last + 1):
        raise ValueError(f"state={state!r} does not exist; pass 0, ..., {last}, or -1 for the last.")
    w = check_vector("w", w, network.dimension)
    if route == "complex-step":
        return complex_step(lambda point: network.states(point, x)[state].ravel(), w)
    states, blocks = network.states(w, x), network.blocks(w)
    start = 0
    J = np.zeros((states[0].size, w.size))
    for i in range(last if state == -1 else state):
        A, B = network.stages[i].jacobians(blocks[i], states[i])
        J = A @ J
        J[:, start : start + B.shape[1]] += B
        start += B.shape[1]
    return J


def ggn(
    network: Network, w: ArrayLike, x: ArrayLike, y: ArrayLike, *, route: str = "stages"
) -> Float[np.ndarray, "d d"]:
    """The generalized Gauss-Newton matrix J'(hess l)J of the mean loss.

    Args:
        network: the network.
        w: all weights (d,).
        x: the batch (n, widths[0]).
        y: integer labels (n,), or values (n, widths[-1]) for squared error.
        route: "stages" (the LQR problem with zero costates) or "complex-step" (J differentiated forward).

    Returns:
        The matrix (d, d), positive semidefinite.

    Source: Schraudolph (2002); book, chapters 3 and 14.
    """
    check_choice("route", route, ("stages", "complex-step"))
    if route == "stages":
        return dense(layerwise_lqr(network, w, x, y, divergence="gauss-newton"))[0]
    J = jacobian(network, w, x, route="complex-step")
    outputs = network.states(w, x)[-1]
    G: Array = J.T @ block_diagonal(network.end.hessian(outputs, network.targets(x, y))) @ J
    return G


def fisher(
    network: Network, w: ArrayLike, x: ArrayLike, *, route: str = "stages"
) -> Float[np.ndarray, "d d"]:
    """The Fisher matrix of the network's likelihood, a mean over the batch: no labels are needed.

    F = (1/n) sum_b E_{y ~ model(x_b)} score score', the score being the gradient of -log p(y | x_b).

    Args:
        network: the network.
        w: all weights (d,).
        x: the batch (n, widths[0]).
        route: "stages" (the LQR problem of the KL divergence) or "scores" (one backpropagation for every
            example and every outcome).

    Returns:
        The matrix (d, d), positive semidefinite.

    Source: Amari, Natural gradient works efficiently in learning (1998); book, chapters 3 and 14.
    """
    check_choice("route", route, ("stages", "scores"))
    batch = check_matrix("x", x, columns=network.widths[0])
    if route == "stages":
        squared = network.loss == "squared-error"
        y = np.zeros((len(batch), network.widths[-1])) if squared else np.zeros(len(batch), dtype=int)
        return dense(layerwise_lqr(network, w, batch, y, divergence="fisher"))[0]
    F = np.zeros((network.dimension, network.dimension))
    for example in batch:
        states = network.states(w, example[None])
        weights, outcomes = network.end.draws(states[-1])
        for weight, outcome in zip(weights[:, 0], outcomes, strict=True):
            score = network.pull(w, states, network.end.gradient(states[-1], outcome))[1]
            F += weight / len(batch) * np.outer(score, score)
    return F


def hessian(
    network: Network, w: ArrayLike, x: ArrayLike, y: ArrayLike, *, route: str = "stages"
) -> Float[np.ndarray, "d d"]:
    """The Hessian H of the mean loss.

    Args:
        network: the network.
        w: all weights (d,).
        x: the batch (n, widths[0]).
        y: integer labels (n,), or values (n, widths[-1]) for squared error.
        route: "stages" (second variation along the linearized network) or "complex-step" (backpropagation
            differentiated).

    Returns:
        The symmetric matrix (d, d).

    Source: book, chapter 14 (curvature from stages is exact).
    """
    check_choice("route", route, ("stages", "complex-step"))
    if route == "stages":
        return dense(layerwise_lqr(network, w, x, y, divergence="newton"))[0]
    w = check_vector("w", w, network.dimension)
    return complex_step(lambda point: network.gradient(point, x, y), w)


def kl_divergence(network: Network, w_from: ArrayLike, w_to: ArrayLike, x: ArrayLike) -> float:
    """Mean over the batch of KL(model at w_from || model at w_to); its Hessian at coincidence is ``fisher``.

    Args:
        network: the network.
        w_from: the frozen weights (d,).
        w_to: the moved weights (d,).
        x: the batch (n, widths[0]).

    Returns:
        The divergence, zero if the outputs agree.

    Source: book, chapter 3 (second-order expansion of KL).
    """
    return network.end.divergence(network.states(w_from, x)[-1], network.states(w_to, x)[-1])
