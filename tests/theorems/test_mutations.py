"""Every theorem's test must be able to fail, assertion by assertion, and was looked at beside its statement."""

from __future__ import annotations

import pytest

from tests.theorems import statements
from tests.theorems.catalogue import MUTATIONS

RECORD = statements.load()
MOST = 93  # assertions that no mutation makes fail; this number only goes down
COMMAND = "python -m tests.theorems.statements --write"


@pytest.mark.parametrize("label", sorted(statements.tests()))
def test_every_mutation_is_caught_and_the_assertions_that_cannot_fail_are_known(label: str) -> None:
    idle, wrong = statements.unreached(label, statements.tests()[label])
    assert not wrong
    known = [line for line in RECORD["cannot fail"] if line.startswith(f"{label}: ")]
    assert idle == known, f"an assertion needs a mutation; after one was added: {COMMAND}"


def test_there_are_not_more_of_them_than_before() -> None:
    assert len(RECORD["cannot fail"]) <= MOST
    assert RECORD["counts"] == statements.counts(len(RECORD["cannot fail"])), COMMAND


def test_every_theorem_test_ships_a_mutation() -> None:
    assert set(statements.tests().values()) - {m.test for m in MUTATIONS} == set()


def test_statements_and_tests_are_the_ones_that_were_seen_together() -> None:
    now = statements.seen()
    changed = [label for label in now if RECORD["seen"].get(label) != now[label]]
    assert not changed, f"read statement and test side by side, then: {COMMAND}"
    assert set(RECORD["seen"]) == set(now)
