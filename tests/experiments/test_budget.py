"""The study of budgets: rows, and what they take in time."""

from __future__ import annotations

import pytest

from book.experiments import budget
from book.experiments.budget import Options, measured, predicted, study
from book.experiments.peers.tasks import problem
from llqr_sam_ref import LLQRConfig


def test_a_small_study_has_a_row_for_every_budget_and_limit() -> None:
    options = Options(tasks=("mlp",), budgets=(0.0, 0.2), limits=(8,), seeds=1, steps=5)
    task = study(options)["mlp"]
    none, some, limited = task["rows"]
    assert (none["overhead"], none["budget"], limited["limit"]) == (0.0, 0.0, 8)
    assert 0 < some["overhead"] <= 0.2
    assert limited["overhead"] == predicted(problem("mlp"), LLQRConfig(max_side=8), task["gradient"])
    assert measured(task["rows"], none) == 0.0
    assert len(none["runs"]) == 1


def test_a_budget_of_nothing_takes_no_bases_and_other_budgets_take_other_steps() -> None:
    here = problem("mlp")
    plans = {share: budget.plan(here, share) for share in (0.0, 0.3)}
    ends = {share: budget.train(here, p.config, 0, 8)["final"] for share, p in plans.items()}
    assert all(c.widths == (0, 0) for c in plans[0.0].choices)
    assert ends[0.0] != pytest.approx(ends[0.3], rel=1e-6)
