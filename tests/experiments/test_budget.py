"""The study of budgets: rows, and what they take in time."""

from __future__ import annotations

import pytest

from book.experiments.budget import Options, gradient, measured, study
from book.experiments.peers.tasks import problem
from llqr_sam_ref import LLQRConfig
from llqr_sam_ref.optim.budget import cost


def test_a_small_study_has_a_row_for_every_limit() -> None:
    task = study(Options(tasks=("mlp",), limits=(0, 8), seeds=1, steps=5))["mlp"]
    none, some = task["rows"]
    assert (none["overhead"], none["limit"], some["limit"]) == (0.0, 0, 8)
    assert some["overhead"] == cost(problem("mlp").model(), LLQRConfig(), 8) / task["gradient"] > 0
    assert task["gradient"] == gradient(problem("mlp"))
    assert measured(task["rows"], none) == 0.0
    assert none["runs"][0]["final"] != pytest.approx(some["runs"][0]["final"], rel=1e-6)
