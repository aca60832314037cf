"""Every theorem has its test, every test its theorem, and the page links the two."""

from __future__ import annotations

import re

import pytest

from tests import rendered
from tests.theorems import catalogue

CHECKS = "book/reference/checks"
LABEL = re.compile(r"(thm|cor|prop|cex|heu)-")


def _statements(page: str) -> list[str]:
    """Ids of the labeled statements on a built page."""
    return [
        str(box["id"]) for box in rendered.html(page).select("div.proof[id]") if LABEL.match(str(box["id"]))
    ]


def _tests() -> set[str]:
    found: set[str] = set()
    for module in catalogue.test_modules():
        names = [name for name in vars(module) if name.startswith("test_")]
        found |= {catalogue.label_of(name) for name in names}
    return found


def test_theorems_and_tests_are_the_same_set() -> None:
    stated = [label for page in rendered.PAGES for label in _statements(page)]
    assert len(stated) == len(set(stated))
    assert set(stated) == _tests()


@pytest.mark.parametrize("page", rendered.CHAPTERS)
def test_each_theorem_links_to_its_test_and_the_test_back(page: str) -> None:
    checks = rendered.html(CHECKS)
    for label in _statements(page):
        box = rendered.html(page).find(id=label)
        assert box is not None
        link = box.select_one("p.checked-by a")
        assert link is not None, f"{label} says nothing about its test"
        path, _, anchor = str(link["href"]).partition("#")
        assert path.endswith("reference/checks.html")
        headline = checks.find(id=anchor)
        assert headline is not None
        assert headline.get_text().strip().removeprefix("test_").replace("_", "-").startswith(label)
        facts = headline.find_next_sibling("p", class_="check-facts")
        assert facts is not None
        assert facts.select_one(f'a[href$="{page.removeprefix("book/")}.html#{label}"]') is not None


def test_every_check_states_its_mutation() -> None:
    facts = rendered.html(CHECKS).select("p.check-facts")
    assert facts
    assert all("Must fail when" in fact.get_text() for fact in facts)


def test_a_theorem_without_a_test_is_reported() -> None:
    """What the extension compares the labels with is what pytest collects."""
    extension = rendered.extension("theorems")
    assert set(extension.all_checks(rendered.ROOT)) == _tests()
    assert "thm-that-nobody-tests" not in extension.all_checks(rendered.ROOT)
