"""Part 6, at scale: what a search with a budget finds, with its mutations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import pytest

from llqr_sam_ref.exact import trials
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation, require


def _with_repetition(s: Array, k: int) -> float:
    """The expected best where a setting may be drawn twice."""
    n, order = len(s), np.sort(s)
    return float(sum(x * ((i + 1) ** k - i**k) / n**k for i, x in enumerate(order)))


@mutation("settings may be drawn twice", best=_with_repetition)
@mutation("the best k are tried", best=lambda s, k: float(np.mean(np.sort(s)[-k:])))
def test_prop_expected_best(best: Callable[[Array, int], float] = trials.expected_best) -> None:
    """Against the mean over all choices; from the mean of all to the largest, never falling."""
    rng = np.random.default_rng(701)
    for n in (1, 2, 5, 9):
        s = rng.standard_normal(n)
        values = [best(s, k) for k in range(1, n + 1)]
        for k, value in enumerate(values, start=1):
            choices = [max(choice) for choice in combinations(s, k)]
            require(len(choices) == comb(n, k), "all choices are counted")
            assert value == pytest.approx(np.mean(choices), abs=1e-12)
        assert values[0] == pytest.approx(s.mean())
        assert values[-1] == pytest.approx(s.max())
        assert (np.diff(values) >= -1e-12).all()
