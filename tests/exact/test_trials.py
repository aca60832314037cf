"""The expected best refuses what it cannot answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llqr_sam_ref.exact import trials


def test_more_trials_than_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="pass at most 2"):
        trials.expected_best(np.zeros(2), 3)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="scores"):
        trials.expected_best(np.array([0.1, np.nan]), 1)


def test_counts_may_be_numpy_integers_and_truth_values_may_not() -> None:
    two: Any = np.int64(2)
    assert trials.expected_best(np.array([1.0, 3.0]), two) == 3.0
    with pytest.raises(ValueError, match="k=True"):
        trials.expected_best(np.zeros(2), True)
