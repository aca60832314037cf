"""The ledger of claims: evidence that is looked up or looked at, and a verdict by rule.

    python -m book.experiments.claims

The data and the rule stand in book/ledger/claims.yml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from book.experiments import store
from llqr_sam_ref.tables import Table

FILE = store.ROOT / "book/ledger/claims.yml"
SIDES = ("for", "against", "unclear")
VERDICTS = (
    "confirmed",
    "confirmed with conditions",
    "not seen at this scale",
    "contradicted",
    "not tested here",
)


class EvidenceError(ValueError):
    """A piece of evidence that is not there, or that does not hold."""


@dataclass(frozen=True)
class Evidence:
    """What stands for or against a claim.

    Attributes:
        kind: "result", "record" or "page".
        where: the label, the record's name or the page.
        says: in words, its numbers filled in.
    """

    kind: str
    where: str
    says: str


@dataclass(frozen=True)
class Claim:
    """One row.

    Attributes:
        id: its name in the ledger.
        source: key of the paper.
        claim: in our words.
        chapter: label of the chapter that has it.
        evidence: by side: "for", "against", "unclear".
        change: what would change the verdict.
    """

    id: str
    source: str
    claim: str
    chapter: str
    evidence: Mapping[str, tuple[Evidence, ...]]
    change: str

    @property
    def verdict(self) -> str:
        """By the rule that stands in the file."""
        pro, con, open_ = (bool(self.evidence[side]) for side in SIDES)
        if pro:
            return VERDICTS[1] if con or open_ else VERDICTS[0]
        return VERDICTS[2] if open_ else VERDICTS[3] if con else VERDICTS[4]


def read(
    path: Path = FILE, checked: Callable[[str, Mapping[str, Any]], Evidence] | None = None
) -> list[Claim]:
    """All claims as the file has them.

    Args:
        path: of the YAML file.
        checked: makes a piece of evidence from a claim's name and what the file says; by default nothing is looked up.

    Returns:
        The claims in the order of the file.
    """
    look = checked or (lambda claim, item: Evidence(*_place(item), item["says"]))
    claims = []
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        evidence = {side: tuple(look(row["id"], item) for item in row.get(side, ())) for side in SIDES}
        change = " ".join(row["change"].split())
        claims.append(Claim(row["id"], row["source"], row["claim"], row["chapter"], evidence, change))
    return claims


def ledger(path: Path = FILE) -> list[Claim]:
    """All claims with their evidence looked up, and the numbers of it filled in.

    Args:
        path: of the YAML file.

    Returns:
        The claims in the order of the file.

    Raises:
        EvidenceError: evidence that is missing or does not hold, with the claim and what was found.
    """
    return read(path, _checked)


def _place(item: Mapping[str, Any]) -> tuple[str, str]:
    kind = next(kind for kind in ("result", "record", "page") if kind in item)
    return kind, item[kind]


def _checked(claim: str, item: Mapping[str, Any]) -> Evidence:
    kind, where = _place(item)
    says = {"result": _result, "record": _record, "page": _page}[kind](claim, item)
    return Evidence(kind, where, says)


def _result(claim: str, item: Mapping[str, Any]) -> str:
    """A statement of the book, with a test that bears its name."""
    label = item["result"]
    if f":label: {label}\n" not in _pages():
        raise EvidenceError(f"{claim}: no page states {label}; name a label that a page has.")
    if f"def test_{label.replace('-', '_')}(" not in _theorem_tests():
        raise EvidenceError(f"{claim}: {label} has no test; write one in tests/theorems.")
    return str(item["says"])


def _page(claim: str, item: Mapping[str, Any]) -> str:
    """An assertion in a cell of a page, which ran when the page was built."""
    source = (store.ROOT / f"{item['page']}.md").read_text(encoding="utf-8")
    if not any(line.startswith("assert") and item["asserts"] in line for line in source.splitlines()):
        raise EvidenceError(f"{claim}: no cell of {item['page']} asserts {item['asserts']!r}.")
    return str(item["says"])


def _record(claim: str, item: Mapping[str, Any]) -> str:
    """A comparison within a stored record."""
    name = item["record"]
    results = store.load(name)["results"]
    value = _number(results, item["value"])
    if "within" in item:
        other = _number(results, item["of"])
        holds = abs(value - other) <= item["within"]
    else:
        above = "above" in item
        bound = item["above"] if above else item["below"]
        other = _number(results, bound) if isinstance(bound, Sequence) else float(bound)
        holds = value > other if above else value < other
    if not holds:
        raise EvidenceError(
            f"{claim}: {name} has {value:.6g} against {other:.6g} at {item['value']}; state what holds."
        )
    return str(item["says"].format(value=value, other=other))


def _number(results: Any, path: Sequence[Any]) -> float:
    """What stands at a path: a number, or the mean of a list of numbers, of their last ones, or of a field.

    A string that meets a list of rows picks the row of that name ("what"), "last" the last entry of every row, another
    string that field of every row.
    """
    at = results
    for step in path:
        if isinstance(at, list) and isinstance(step, str):
            named = [row for row in at if isinstance(row, dict) and row.get("what", "").startswith(step)]
            at = named[0] if named else [row[-1] if step == "last" else row[step] for row in at]
        else:
            at = at[step]
    return float(np.mean(at))


@cache
def _pages() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((store.ROOT / "book").rglob("*.md")))


@cache
def _theorem_tests() -> str:
    folder = store.ROOT / "tests" / "theorems"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("test_*.py")))


def overview(claims: Sequence[Claim]) -> Table:
    """Claims and verdicts."""
    return Table(("claim", "in our words", "verdict"), [(c.id, c.claim, c.verdict) for c in claims])


if __name__ == "__main__":
    print(overview(ledger()))
