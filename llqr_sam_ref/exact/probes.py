"""What probes can teach: label sampling, optima over many probes, and the clock of a refit.

One probe g fixes U on one vector only. Averaged over probes with second moment C = E g g',

    E J(U) = -tr(U C) + 1/2 tr(U'G U C),

and the minimizer is a curvature inverse, restricted to the structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import check_matrix, check_spd, check_symmetric, check_vector
from llqr_sam_ref.exact.structures import Array


def sample_labels(probabilities: ArrayLike, uniforms: ArrayLike) -> Int[np.ndarray, " n"]:
    """Draw one label per row by inverse CDF: the smallest j with u < pi_0 + ... + pi_j.

    Args:
        probabilities: pi, class probabilities (n, classes), rows adding up to 1.
        uniforms: u, one number in [0, 1) per row, shape (n,).

    Returns:
        Labels 0 .. classes-1, shape (n,). Rounding in the last sum cannot lead past the last class.

    Raises:
        ValueError: negative probabilities, rows that do not add up to 1, uniforms outside [0, 1).

    Source: inverse transform sampling; labels from the model as in Fisher SAM and E-KFAC (arXiv 1806.03884).
    """
    pi = check_matrix("probabilities", probabilities)
    u = check_vector("uniforms", uniforms, len(pi))
    if pi.min() < 0 or np.abs(pi.sum(axis=1) - 1).max() > 1e-6:
        raise ValueError(
            f"probabilities has rows that are no distributions (smallest entry {pi.min():.6g}, sums from "
            f"{pi.sum(axis=1).min():.6g} to {pi.sum(axis=1).max():.6g}); pass softmax outputs."
        )
    if u.min() < 0 or u.max() >= 1:
        raise ValueError(f"uniforms runs from {u.min():.6g} to {u.max():.6g}; pass numbers in [0, 1).")
    steps = np.cumsum(pi, axis=1)[:, :-1]
    labels: Int[np.ndarray, " n"] = np.sum(u[:, None] >= steps, axis=1)
    return labels


def micro_batch_gradients(
    gradient: Callable[[Float[np.ndarray, "m ..."], Float[np.ndarray, "m ..."]], Float[np.ndarray, " d"]],
    inputs: Float[np.ndarray, "n ..."],
    targets: Float[np.ndarray, "n ..."],
    count: int,
) -> Float[np.ndarray, "k d"]:
    """Probes V_j: the gradient of the mean loss on each of k equal, contiguous shards of the probe batch.

    Args:
        gradient: (inputs, targets) -> gradient of the MEAN loss over those examples, shape (d,).
        inputs: probe examples, shape (n, ...).
        targets: their labels: the true ones, or ``sample_labels`` of the model's probabilities.
        count: k, the number of micro-batches; shard j holds examples j m .. (j+1) m - 1 with m = n/k.

    Returns:
        The probes, shape (k, d).

    Raises:
        ValueError: k does not divide n, or inputs and targets differ in number.

    Source: the book, chapters 16 and 18.
    """
    check_count("count", count)
    n = len(inputs)
    if len(targets) != n or n % count or n == 0:
        raise ValueError(
            f"count={count} micro-batches do not partition {n} inputs and {len(targets)} targets; "
            "pass as many targets as inputs and a count that divides them."
        )
    size = n // count
    shards = [slice(j * size, (j + 1) * size) for j in range(count)]
    return np.stack([gradient(inputs[shard], targets[shard]) for shard in shards])


def dense_optimum(G: ArrayLike) -> Float[np.ndarray, "d d"]:
    """The dense minimizer of E J, whatever the probes' second moment C, as long as C has full rank: G^{-1}.

    Args:
        G: damped curvature, symmetric positive definite (d, d).

    Returns:
        G^{-1}.

    Raises:
        ValueError: G is not symmetric positive definite.

    Source: the book, thm-multi-probe-optimum.
    """
    G = check_spd("G", G)
    inverse = np.linalg.inv(G)
    symmetric: Float[np.ndarray, "d d"] = (inverse + inverse.T) / 2
    return symmetric


def diagonal_optimum(G: ArrayLike, C: ArrayLike | None = None) -> Float[np.ndarray, " d"]:
    """The diagonal minimizer of E J: the solution of (G o C) d = diag(C).

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        C: second moment E g g' of the probes; none given means the identity, d_i = 1/G_ii.

    Returns:
        d, in units of 1/curvature; entries may be negative when the coordinates of the probes are correlated.

    Raises:
        ValueError: G is not positive definite, C is not symmetric with a positive diagonal.

    Source: the book, thm-multi-probe-optimum, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    if C is None:
        inverse: Float[np.ndarray, " d"] = 1 / np.diag(G)
        return inverse
    C = _second_moment(C, len(G))
    solution: Float[np.ndarray, " d"] = np.linalg.solve(G * C, np.diag(C))
    return solution


def scalar_optimum(G: ArrayLike, C: ArrayLike | None = None) -> float:
    """The scalar minimizer of E J: tr(C)/tr(G C); with white probes d/tr(G).

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        C: second moment E g g' of the probes; none given means the identity.

    Returns:
        u, in units of 1/curvature.

    Raises:
        ValueError: G is not positive definite, C is not symmetric with a positive diagonal.

    Source: the book, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    C = np.eye(len(G)) if C is None else _second_moment(C, len(G))
    return float(np.trace(C) / np.sum(G * C))


def block_optimum(G: ArrayLike, sizes: Sequence[int]) -> Float[np.ndarray, "d d"]:
    """The block-diagonal minimizer of E J for white probes: the inverses of the diagonal blocks of G.

    Curvature between blocks is invisible to it.

    Args:
        G: damped curvature, symmetric positive definite (d, d).
        sizes: numbers of weights of the blocks, adding up to d.

    Returns:
        The block-diagonal matrix, shape (d, d).

    Raises:
        ValueError: G is not positive definite, or the sizes do not add up to d.

    Source: the book, thm-random-probe-optimum.
    """
    G = check_spd("G", G)
    for size in sizes:
        check_count("sizes", size)
    if sum(sizes) != len(G):
        raise ValueError(
            f"sizes={list(sizes)} add up to {sum(sizes)}; pass block sizes that add up to {len(G)}."
        )
    optimum = np.zeros_like(G)
    start = 0
    for size in sizes:
        block = slice(start, start + size)
        optimum[block, block] = dense_optimum(G[block, block])
        start += size
    return optimum


def _second_moment(C: ArrayLike, size: int) -> Float[np.ndarray, "d d"]:
    C = check_symmetric("C", C, size)
    if np.diag(C).min() <= 0:
        raise ValueError(
            f"C has {np.diag(C).min():.6g} on its diagonal; pass probes that reach every coordinate."
        )
    return C


def early_stopping_filter(w: ArrayLike, steps: int, a: float) -> Array:
    """What T plain inner steps from the identity make of curvature w: 1/w + (1 - 1/w)(1 - a w)^T.

    Args:
        w: curvature, any shape; 0 stands for its limit 1 + a T.
        steps: T.
        a: inner learning rate times the probe's squared length, eta_U |g|^2.

    Returns:
        The factor that multiplies the gradient, in the shape of w: between 1 and 1/w for 0 < a w <= 1;
        diverging with T for a w > 2.

    Raises:
        ValueError: entries that are not finite, or a negative number of steps or a.

    Source: the book, (16.4), thm-early-stopping-filter.
    """
    check_count("steps", steps, low=0)
    a = check_number("a", a, low=0.0)
    w = check_vector("w", np.ravel(w)).reshape(np.shape(w))
    left = (1 - a * w) ** steps
    safe = np.where(w == 0, 1.0, w)
    gentle = np.where(a * w < 0.5, a * w, 0.0)  # where 1 - left would lose digits
    gone = np.where(a * w < 0.5, -np.expm1(steps * np.log1p(-gentle)), 1 - left)
    learned = np.where(w == 0, a * steps, gone / safe)
    response: Array = learned + left
    return response


def travel_budget(steps: int, eta_U: float, clip: float, beta: float) -> float:
    """How far one stored array can move in a refit: eta_U clip sum_t (1 - beta^t)/(1 - beta).

    Args:
        steps: T, inner steps.
        eta_U: inner learning rate.
        clip: largest norm of the array's gradient.
        beta: inner momentum.

    Returns:
        The bound on |U_T - U_0| (Frobenius); an average with decay gamma keeps 1 - gamma of it.

    Raises:
        ValueError: a setting out of its range.

    Source: the book, (18.2), thm-travel-budget.
    """
    check_count("steps", steps, low=0)
    check_number("eta_U", eta_U, low=0.0)
    check_number("clip", clip, low=0.0)
    check_number("beta", beta, low=0.0, high=1.0, open_high=True)
    reach = sum((1 - beta**t) / (1 - beta) for t in range(1, steps + 1))
    return eta_U * clip * reach


def memory(every: int, gamma: float, q: float = 0.0) -> float:
    """The time constant of U in training steps: every / ((1 - gamma)(1 - q)).

    Args:
        every: training steps between refits.
        gamma: decay of the average over refits; 1 never learns (infinite memory).
        q: what a refit leaves of the distance to its target: 0 if it gets there, near 1 if it is weak.

    Returns:
        The memory, in training steps.

    Raises:
        ValueError: every is not a count, or gamma or q is outside [0, 1].

    Source: the book, (18.1), thm-ema-relaxed-step.
    """
    check_count("every", every)
    check_number("gamma", gamma, low=0.0, high=1.0)
    check_number("q", q, low=0.0, high=1.0)
    share = (1 - gamma) * (1 - q)
    return math.inf if share == 0 else every / share


def overhead(steps: int, every: int, product: float = 4 / 3, probe: float = 1.0) -> float:
    """What refits cost, in gradients per training step: T product probe / every.

    Args:
        steps: T, inner steps (curvature products per refit).
        every: training steps between refits.
        product: cost of one curvature product over one gradient of the same batch (4/3 GGN, 2 Hessian).
        probe: probe batch over training batch.

    Returns:
        The relative cost: 0.067 is 6.7 percent of a plain step.

    Raises:
        ValueError: a setting out of its range.

    Source: the book, (18.4), prop-product-cost.
    """
    check_count("steps", steps, low=0)
    check_count("every", every)
    check_number("product", product, low=0.0)
    check_number("probe", probe, low=0.0)
    return steps * product * probe / every
