"""The ledger: every piece of evidence is live, and verdicts follow from the rule alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from book.experiments import claims as subject

FOR = {"result": "thm-riccati", "says": "shown"}
AGAINST = {"result": "cex-newton-unbounded", "says": "not always"}
UNCLEAR = {
    "record": "fashion_resnet18",
    "value": ["methods", "sam", "accuracy"],
    "within": 0.01,
    "of": ["methods", "sgd", "accuracy"],
    "says": "{value:.3f} and {other:.3f}",
}


def _ledger(tmp_path: Path, **sides: list[dict[str, Any]]) -> subject.Claim:
    row = {"id": "X1", "source": "foret2021sam", "claim": "c", "chapter": "ch-lqr", "change": "d", **sides}
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump([row]), encoding="utf-8")
    return subject.ledger(path)[0]


@pytest.mark.parametrize(
    ("sides", "verdict"),
    [
        ({"for": [FOR]}, "confirmed"),
        ({"for": [FOR], "against": [AGAINST]}, "confirmed with conditions"),
        ({"for": [FOR], "unclear": [UNCLEAR]}, "confirmed with conditions"),
        ({"unclear": [UNCLEAR]}, "not seen at this scale"),
        ({"unclear": [UNCLEAR], "against": [AGAINST]}, "not seen at this scale"),
        ({"against": [AGAINST]}, "contradicted"),
        ({}, "not tested here"),
    ],
)
def test_the_rule(tmp_path: Path, sides: dict[str, list[dict[str, Any]]], verdict: str) -> None:
    assert _ledger(tmp_path, **sides).verdict == verdict


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"result": "thm-nobody-wrote", "says": ""}, "no page states thm-nobody-wrote"),
        ({"page": "book/monge/radius", "asserts": "1 > 2", "says": ""}, "asserts '1 > 2'"),
        ({**UNCLEAR, "within": 1e-6}, "0.912833 against 0.910667"),
        (
            {"record": "bench", "value": ["rows", "M-SAM step", "measured"], "below": 1.0, "says": ""},
            "bench has 2.0",
        ),
    ],
)
def test_evidence_that_is_missing_or_does_not_hold_is_refused(
    tmp_path: Path, item: dict[str, Any], message: str
) -> None:
    with pytest.raises(subject.EvidenceError, match=message):
        _ledger(tmp_path, **{"for": [item]})


def test_all_evidence_of_the_book_holds_and_fills_in_its_numbers() -> None:
    ledger = subject.ledger()
    assert len({claim.id for claim in ledger}) == len(ledger) == 25
    for claim in ledger:
        assert claim.change
        for side in subject.SIDES:
            for item in claim.evidence[side]:
                assert item.says
                assert "{" not in item.says
    assert {claim.verdict for claim in ledger} == set(subject.VERDICTS) - {
        "not tested here"
    }  # which an empty row would have
