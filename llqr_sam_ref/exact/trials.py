"""What a search with a budget can be expected to find."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_count
from llqr_sam_ref.exact._arrays import check_vector


def expected_best(scores: Float[np.ndarray, " n"], k: int) -> float:
    """Expected largest score of k of n settings, chosen at random without repetition.

    E_k = sum_i s_(i) C(i - 1, k - 1)/C(n, k) over the scores in ascending order.

    Args:
        scores: one number per setting, larger is better, shape (n,).
        k: number of settings that are tried, from 1 to n.

    Returns:
        E_k, in the unit of the scores.

    Raises:
        ValueError: scores that are no vector of finite numbers; k outside of 1 to n.

    Source: the book, (23.1); prop-expected-best.
    """
    s = np.sort(check_vector("scores", scores))
    if check_count("k", k) > len(s):
        raise ValueError(f"k = {k} trials of {len(s)} settings; pass at most {len(s)}.")
    below = [comb(i, k - 1) / comb(len(s), k) for i in range(len(s))]  # i settings are worse than the i-th
    return float(s @ below)
