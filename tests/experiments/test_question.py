"""The question's worth: who is compared with whom, and what a step says to a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from book.experiments import launches, sequences, vision
from book.experiments.peers.study import Options
from book.experiments.question import TWICE, Comparison, compared


def runs(losses: Sequence[float]) -> list[dict[str, Any]]:
    """Runs that end at these losses."""
    return [{"diverged": "", "final": loss, "test": {"loss": 2 * loss}} for loss in losses]


def test_methods_are_compared_seed_by_seed() -> None:
    reports = {("t", "a"): runs([1.0, 2.0, 3.0]), ("t", "b"): runs([2.0, 4.0, 2.0])}
    rows = compared(reports, ["t"], [("a", "b")])
    assert [row["what"] for row in rows] == ["training t: a over b", "test t: a over b"]
    assert [row["ahead"] for row in rows] == [2, 2]
    assert rows[0]["ratio"] == pytest.approx((0.5 * 0.5 * 1.5) ** (1 / 3))


def test_more_comparisons_of_a_kind_weaken_each() -> None:
    reports = {
        ("t", "a"): runs([1.0, 1.1, 1.2, 0.9]),
        ("t", "b"): runs([1.3, 1.5, 1.4, 1.35]),
        ("t", "c"): runs([1.2, 1.1, 1.3, 1.0]),
    }
    alone = compared(reports, ["t"], [("a", "b")])[0]
    among = compared(reports, ["t"], [("a", "b"), ("a", "c")])[0]
    assert among["t"] == pytest.approx(2 * alone["t"])


@pytest.mark.parametrize("study", [sequences, vision])
def test_every_comparison_is_of_methods_that_run(study: Any) -> None:
    known = {*study.ASKING, *study.ASKING.values(), *map(TWICE.format, study.ASKING), "muon"}
    assert {name for pair in study.PAIRS for name in pair} <= known
    assert len(set(study.PAIRS)) == len(study.PAIRS)


def test_quick_is_the_same_comparison() -> None:
    asked = Comparison("sequences", Options(methods=("llqr", "llqr-sam")), {"llqr": "llqr-sam"}, ())
    quick = asked.at_small_sizes()
    assert quick.options.methods == asked.options.methods
    assert quick.options.steps == 12


def test_an_operator_that_is_called_is_counted_and_so_is_a_wait() -> None:
    x = torch.ones(3)
    assert launches.counted(lambda: x.mul_(1.0), "cpu") == (1.0, 0.0)
    _, waits = launches.counted(lambda: float(x[0]), "cpu")
    assert waits == 1.0


def test_sam_says_more_than_its_base() -> None:
    found = launches.measured(launches.Options(rounds=1), lambda: nn.Linear(6, 4), torch.randn(5, 6))
    assert found["tensors"] == 2
    methods = found["methods"]
    assert methods["sam"]["launches"] > methods["sgd"]["launches"]
    assert methods["llqr-sam"]["launches"] > methods["llqr"]["launches"]
    assert all(row["milliseconds"] > 0 for row in methods.values())
