"""Each page as a reader gets it: complete offline, readable by everybody, on a phone and at night.

One visit a page answers for all tests, because loading a page is what takes the time.
"""

from __future__ import annotations

import functools
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser

from tests import rendered
from tests.site.browser import Visit

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# What axe finds in the theme's own parts and we cannot mend: rule, and what the element's selector contains.
THEME_FINDINGS: dict[str, str] = {}
# Long pages made of equal parts: axe reads one part.
ONE_PART = {"book/reference/exact": "#module-geometry", "book/reference/checks": "#test-geometry"}

WIDTHS = (1400, 1024, 768, 360)
FIGURE = re.compile(rb"<svg[^>]*(?:figure-svg|lf-still).*?</svg>", re.DOTALL)
WIDE = """() => document.documentElement.scrollWidth - window.innerWidth"""
BROKEN_MATH = """() => [...document.querySelectorAll('.katex-error')].map(e => e.title)"""
UNSET_MATH = """() => [...document.querySelectorAll('span.math, div.math')]
    .filter(e => !e.querySelector('.katex')).map(e => e.textContent.slice(0, 40))"""
CUT_FORMULAS = """() => [...document.querySelectorAll('.katex-display')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"""
# What reaches beyond the window and stands in nothing that scrolls.
CUT = """() => [...document.querySelectorAll(
    'article :is(h1, h2, h3, p, li, dt, dd, td, th, pre, svg, img, button, select, input)')].filter(node => {
      const { right, width, height } = node.getBoundingClientRect();
      if (!width || !height || right <= innerWidth + 1 || getComputedStyle(node).visibility === 'hidden') return false;
      for (let up = node.parentElement; up; up = up.parentElement)
        if (/auto|scroll/.test(getComputedStyle(up).overflowX) || up.matches('.katex, svg, .lf-voice')) return false;
      return true;
    }).map(node => node.outerHTML.slice(0, 80))"""
# What a reader sees of a formula is hidden from those who listen, and has the color of its text: axe may skip
# its ten thousand letters and look at the MathML.
ONLY_SPOKEN_FORMULAS = """() => document.querySelectorAll('.katex-html').forEach(e => e.remove())"""
FIGURE_COLORS = """() => [...document.querySelectorAll('svg.figure-svg')].map(svg => {
    const shape = svg.querySelector('path[style*="var(--"]');
    return shape ? [...svg.querySelectorAll('path')].map(p => getComputedStyle(p).stroke).join() : '';
})"""


@dataclass(frozen=True)
class Report:
    """What one visit found."""

    complaints: list[str]
    broken_math: list[str]
    unset_math: list[str]
    findings: dict[str, list[str]]
    overflow: dict[int, int]
    beyond: dict[int, list[str]]
    figure_colors: dict[str, list[str]]
    weight: int
    cut: list[str]


@functools.cache
def _report(browser: Browser, page: str) -> Report:
    visit = Visit(browser, rendered.build() / f"{page}.html")
    math = visit.ask(BROKEN_MATH), visit.ask(UNSET_MATH)
    complaints, weight = list(visit.complaints), _weight(visit.files)
    visit.look("light", 1400)
    cut = visit.ask(CUT_FORMULAS)
    overflow, beyond = {}, {}
    for width in WIDTHS:
        visit.look("dark" if width == 360 else "light", width)
        overflow[width] = int(visit.ask(WIDE))
        beyond[width] = visit.ask(CUT)
    visit.ask(ONLY_SPOKEN_FORMULAS)
    findings: dict[str, list[str]] = {}
    colors: dict[str, list[str]] = {}
    for theme, rules in {"light": RULES, "dark": ["color-contrast"]}.items():
        visit.look(theme, 1200)
        colors[theme] = visit.ask(FIGURE_COLORS)
        findings[theme] = _axe(visit, rules, ONE_PART.get(page, "html"))
    report = Report(complaints, *math, findings, overflow, beyond, colors, weight, cut)
    visit.close()
    return report


def _weight(files: set[Path]) -> int:
    """Compressed bytes of all files of a page but its figures."""
    return sum(_compressed(path) for path in files if "_figures" not in path.parts)


def _compressed(path: Path) -> int:
    content = path.read_bytes()
    if path.suffix in {".woff", ".woff2"}:
        return len(content)
    return len(gzip.compress(FIGURE.sub(b"", content) if path.suffix == ".html" else content))


def _axe(visit: Visit, rules: list[str], part: str) -> list[str]:
    assert visit.page.query_selector(part) is not None
    options = {"runOnly": rules, "resultTypes": ["violations"], "preload": False}
    violations = Axe().run(visit.page, context=part, options=options).response["violations"]
    return [
        f"{violation['id']}: {' '.join(map(str, node['target']))}"
        for violation in violations
        for node in violation["nodes"]
        if THEME_FINDINGS.get(violation["id"], "nothing") not in " ".join(map(str, node["target"]))
    ]


PAGES = pytest.mark.parametrize("page", rendered.PAGES)


@PAGES
def test_the_page_asks_for_nothing_and_complains_about_nothing(browser: Browser, page: str) -> None:
    assert not _report(browser, page).complaints


@PAGES
def test_every_formula_is_set(browser: Browser, page: str) -> None:
    report = _report(browser, page)
    assert not report.broken_math
    assert not report.unset_math


@PAGES
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, page: str, theme: str) -> None:
    assert not _report(browser, page).findings[theme]


@PAGES
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways_and_nothing_is_cut(browser: Browser, page: str, width: int) -> None:
    assert _report(browser, page).overflow[width] <= 0
    assert _report(browser, page).beyond[width] == []


@PAGES
def test_no_formula_is_cut_at_a_desk(browser: Browser, page: str) -> None:
    assert not _report(browser, page).cut


@pytest.mark.parametrize("page", rendered.CHAPTERS)
def test_the_first_view_is_light(browser: Browser, page: str) -> None:
    assert _report(browser, page).weight < 300_000


@PAGES
def test_every_figure_changes_its_colors_with_the_theme(browser: Browser, page: str) -> None:
    colors = _report(browser, page).figure_colors
    for light, dark in zip(colors["light"], colors["dark"], strict=True):
        assert light
        assert light != dark


def test_folded_proofs_are_open_in_print(browser: Browser) -> None:
    folded = [page for page in rendered.CHAPTERS if rendered.html(page).select("div.proof.dropdown")]
    assert folded
    visit = Visit(browser, rendered.build() / f"{folded[0]}.html")
    height = (
        "() => Math.min(...[...document.querySelectorAll('div.proof.dropdown')].map(e => e.offsetHeight))"
    )
    closed = visit.ask(height)
    visit.page.emulate_media(media="print")
    assert visit.ask(height) > closed
    visit.close()
