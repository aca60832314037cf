"""Every link and every anchor of the built site resolves, and nothing is loaded from elsewhere."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from tests import rendered

LINKS = {
    "a": "href",
    "img": "src",
    "script": "src",
    "link": "href",
    "source": "src",
    "iframe": "src",
    "form": "action",
}


@functools.cache
def _parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def _anchors(path: Path) -> frozenset[str]:
    return frozenset(str(tag["id"]) for tag in _parsed(path).select("[id]"))


def _pages() -> list[Path]:
    """Every page of the site, Sphinx's own included; _static holds the theme's templates."""
    return sorted(page for page in rendered.build().rglob("*.html") if "_static" not in page.parts)


def _targets(path: Path) -> list[tuple[str, str]]:
    """Tag and target of everything that the page links to or loads; what it calls itself is neither."""
    return [
        (tag.name, str(tag[LINKS[tag.name]]))
        for tag in _parsed(path).select("[href]:not([rel=canonical]), [src], [action]")
        if tag.name in LINKS and tag.has_attr(LINKS[tag.name])
    ]


def test_every_internal_link_and_anchor_resolves() -> None:
    broken = []
    for page in _pages():
        for _, target in _targets(page):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = page if not url.path else (page.parent / unquote(url.path)).resolve()
            anchor = unquote(url.fragment)
            if not file.is_file():
                broken.append(f"{page.name}: {target} (no such file)")
            elif anchor and file.suffix == ".html" and "=" not in anchor and anchor not in _anchors(file):
                broken.append(f"{page.name}: {target} (no such anchor)")
    assert not broken


def test_ids_are_unique_on_every_page() -> None:
    repeated = {}
    for page in rendered.PAGES:
        ids = [str(tag["id"]) for tag in rendered.html(page).select("article [id]")]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            repeated[page] = twice
    assert not repeated


def test_no_page_loads_anything_from_elsewhere() -> None:
    foreign = [
        f"{page.name}: <{tag}> {target}"
        for page in _pages()
        for tag, target in _targets(page)
        if tag != "a" and (urlsplit(target).scheme not in {"", "data"} or urlsplit(target).netloc)
    ]
    assert not foreign


def test_no_style_sheet_loads_anything_from_elsewhere() -> None:
    foreign = []
    for sheet in rendered.build().rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        loaded = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"](https?:[^'\"]+)", text)
        foreign += [f"{sheet.name}: {found}" for found in loaded]
    assert not foreign


@pytest.mark.parametrize("page", rendered.PAGES)
def test_every_picture_has_an_accessible_name(page: str) -> None:
    pictures = rendered.html(page).select('article img, article svg[role="img"]')
    unnamed = [str(tag)[:80] for tag in pictures if not (tag.get("alt") or tag.get("aria-label"))]
    assert not unnamed


@pytest.mark.parametrize("page", rendered.PAGES)
def test_a_live_figure_has_its_script_its_picture_and_its_sentence_without_javascript(page: str) -> None:
    soup = rendered.html(page)
    figures = soup.select("live-figure")
    scripts = [str(tag["src"]) for tag in soup.select("script[src]") if "_figures/" in str(tag["src"])]
    assert len(scripts) == (1 if figures else 0)
    for figure in figures:
        assert str(figure["kind"]) in Path(urlsplit(scripts[0]).path).stem.split("-")
        assert figure.find("svg") is not None
        question, *answers = str(figure["data-ask"]).split(" | ")
        assert question.endswith("?")
        assert 2 <= len(answers) <= 4
        sentence = figure.select_one("p.lf-sentence")
        assert sentence is not None
        assert sentence.get_text().strip()
