"""Probes: labels sampled from the model, and the gradients of micro-batches against them.

One probe g fixes U on one vector only; gradients of the mean loss over m examples, against labels drawn from the
model, have second moment F/m, F the Fisher matrix. ``optima`` says which U is best over many of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_count
from llqr_sam_ref.exact._arrays import check_matrix, check_vector


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
