"""The palette, recomputed from the style sheet: every method can be told from every other, by everybody."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from llqr_sam_ref.figures import style
from tests import rendered
from tests.site import color

SHEET = (rendered.ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")
METHODS = ("gd", "adamw", "sam", "msam", "llqr", "llqr-sam")


def _variables(selector: str) -> dict[str, str]:
    block = re.search(rf"^{re.escape(selector)} \{{(.*?)^\}}", SHEET, re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[1]))


LIGHT = _variables(":root")
DARK = {**LIGHT, **_variables('html[data-theme="dark"]')}
THEMES = pytest.mark.parametrize("variables", [LIGHT, DARK], ids=["light", "dark"])


def test_the_style_sheet_and_the_figures_have_the_same_colors() -> None:
    for key, method in style.METHODS.items():
        name = f"method-{key.replace('_', '-')}"
        assert (LIGHT[name], DARK[name]) == (method.light, method.dark)
        assert (LIGHT[f"{name}-text"], DARK[f"{name}-text"]) == (method.text_light, method.text_dark)
    assert (LIGHT["figure-ink"], DARK["figure-ink"]) == (style.INK, style.INK_DARK)
    assert (LIGHT["figure-grid"], DARK["figure-grid"]) == (style.GRID, style.GRID_DARK)


@THEMES
@pytest.mark.parametrize("method", METHODS)
def test_lines_stand_out_from_the_page_and_text_can_be_read(variables: dict[str, str], method: str) -> None:
    page = variables["figure-page"]
    assert color.contrast(variables[f"method-{method}"], page) >= 3.0
    assert color.contrast(variables[f"method-{method}-text"], page) >= 4.5


@THEMES
def test_quiet_text_and_the_titles_of_boxes_can_be_read(variables: dict[str, str]) -> None:
    for name in ("figure-ink", "book-quiet", *(key for key in variables if key.startswith("book-"))):
        assert color.contrast(variables[name], variables["figure-page"]) >= 4.5, name


# Smallest CIEDE2000 distance of any two methods.
SMALLEST = {
    "light": {"normal": 26.3, "protanopia": 26.2, "deuteranopia": 26.3, "tritanopia": 18.0},
    "dark": {"normal": 26.4, "protanopia": 25.3, "deuteranopia": 25.3, "tritanopia": 17.3},
}


@pytest.mark.parametrize(("theme", "variables"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("deficiency", list(color.DEFICIENCIES))
def test_any_two_methods_differ_for_every_eye(theme: str, variables: dict[str, str], deficiency: str) -> None:
    seen = [color.lab(variables[f"method-{method}"], deficiency) for method in METHODS]
    smallest = min(color.difference(one, other) for one, other in combinations(seen, 2))
    assert smallest == pytest.approx(SMALLEST[theme][deficiency], abs=0.06)


def test_a_tinted_card_would_be_too_dark_or_too_light_for_the_lines() -> None:
    """Why method lines stand on the page and never on a card."""
    light = [color.contrast(LIGHT[f"method-{method}"], "#f3f4f5") for method in METHODS]
    dark = [color.contrast(DARK[f"method-{method}"], "#222832") for method in METHODS]
    assert min(light) < 3.0
    assert min(dark) < 3.0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_color_difference_is_the_published_one(
    one: tuple[float, ...], other: tuple[float, ...], expected: float
) -> None:
    assert color.difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)
