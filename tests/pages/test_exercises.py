"""Each chapter asks: twice before it answers, and four exercises, each with a hint and a solution that fold away."""

from __future__ import annotations

import re

import pytest

from tests import rendered

BLOCK = re.compile(
    r"^(`{3,}|:{3,})\{(exercise|admonition|solution)\} ?([^\n]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE
)


def asked(page: str) -> list[tuple[str, str, str]]:
    """Exercises, hints and solutions of a page, in order: kind, label or title, content."""
    found = []
    for _, kind, title, content in BLOCK.findall(rendered.source(page)):
        if kind == "exercise":
            label = re.search(r":label: ([\w-]+)", content)
            found.append((kind, label[1] if label else "", content))
        elif kind == "solution" or title == "Hint":
            found.append((kind, title, content))
    return found


@pytest.mark.parametrize("page", rendered.CHAPTERS)
def test_every_exercise_has_a_hint_and_a_solution(page: str) -> None:
    blocks = asked(page)
    assert len(blocks) >= 12
    assert [kind for kind, _, _ in blocks] == ["exercise", "admonition", "solution"] * (len(blocks) // 3)
    for (_, label, _), (_, _, hint), (_, solved, solution) in zip(
        blocks[::3], blocks[1::3], blocks[2::3], strict=True
    ):
        assert solved == label
        assert ":class: dropdown" in hint
        assert ":class: dropdown" in solution
        assert len(hint.split()) > 2


@pytest.mark.parametrize("page", rendered.CHAPTERS)
def test_the_reader_is_asked_before_the_answer_is_shown(page: str) -> None:
    boxes = rendered.html(page).select("div.admonition.predict")
    assert len(boxes) >= 2
    assert all("?" in box.text for box in boxes)
