"""The book on paper: every page of the site, open, as vectors and letters, with contents and links that lead there."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from filelock import FileLock
from pypdf import PageObject, PdfReader
from pypdf.generic import ArrayObject, Destination, DictionaryObject
from pypdfium2 import PdfDocument  # type: ignore[import-untyped]

from book.editions import pdf
from tests import rendered

OUT = rendered.ROOT / "_build" / "pdf" / pdf.NAME
BOOK = pdf.parts(rendered.ROOT)


def squeezed(text: str) -> str:
    """Without spaces: Chromium sets letters, not words."""
    return re.sub(r"\W", "", text)


@functools.cache
def printed() -> PdfReader:
    """What ``make pdf`` prints; printed again where the site is newer."""
    site = rendered.build()
    sources = [
        *site.rglob("book/**/*.html"),
        *Path(pdf.__file__).parent.iterdir(),
        rendered.ROOT / "_toc.yml",
    ]
    with FileLock(OUT.parent.with_suffix(".lock")):
        if not OUT.is_file() or OUT.stat().st_mtime < max(
            path.stat().st_mtime for path in sources if path.is_file()
        ):
            try:
                pdf.make(site, OUT)
            except RuntimeError as missing:
                pytest.skip(str(missing))
    return PdfReader(OUT)


@functools.cache
def read() -> PdfDocument:
    """The same, by a reader that is quick with text."""
    printed()
    return PdfDocument(OUT)


@functools.cache
def text(number: int) -> str:
    return squeezed(read()[number].get_textpage().get_text_range())


@functools.cache
def bookmarks() -> dict[str, int]:
    """From the titles of Parts and pages to the page where they begin, counted from 0."""
    found = {}

    def walk(entries: list[object], depth: int) -> None:
        for entry in entries:
            if isinstance(entry, list):
                walk(entry, depth + 1)
            elif isinstance(entry, Destination) and depth < 2:
                number = printed().get_destination_page_number(entry)
                assert number is not None
                found[str(entry.title)] = number

    walk(list(printed().outline), 0)
    return found


def title(page: str) -> str:
    heading = rendered.html(page).select_one("article h1")
    assert heading is not None
    for link in heading.select(".headerlink"):
        link.extract()
    return " ".join(heading.get_text().split())


def links(page: PageObject) -> list[dict[str, object]]:
    found = [entry.get_object() for entry in page.get("/Annots", ArrayObject())]
    return [entry for entry in found if entry["/Subtype"] == "/Link"]


def test_every_page_of_the_site_begins_where_its_bookmark_leads() -> None:
    pages = [page for part in BOOK for page in part.pages]
    assert pages == rendered.PAGES
    begins = [bookmarks()[title(page)] for page in pages]
    assert begins == sorted(set(begins))
    for page, number in zip(pages, begins, strict=True):
        assert squeezed(title(page)) in text(number)[:400], page


def test_the_book_is_as_long_as_its_parts() -> None:
    folder = OUT.parent
    cover, inside = (len(PdfReader(folder / f"{name}.pdf").pages) for name in ("cover", "inside"))
    assert len(printed().pages) == cover + inside
    assert 2 <= cover <= 4
    assert inside > 10 * len(rendered.CHAPTERS)
    assert printed().page_labels[cover] == "1"


def test_the_contents_print_the_page_and_lead_to_it() -> None:
    cover = next(i for i, label in enumerate(printed().page_labels) if label == "1")
    places = {
        page.indirect_reference.idnum: i for i, page in enumerate(printed().pages) if page.indirect_reference
    }
    led = [
        places[link["/Dest"][0].idnum]  # type: ignore[index]
        for number in range(cover)
        for link in links(printed().pages[number])
    ]
    assert sorted(set(led)) == sorted(bookmarks()[title(page)] for page in rendered.PAGES)
    contents = "".join(map(text, range(cover)))
    for page in rendered.CHAPTERS:
        assert f"{squeezed(title(page))}{bookmarks()[title(page)] - cover + 1}" in contents


def test_no_link_leads_out_of_the_book_but_to_the_web() -> None:
    named = printed().named_destinations
    for page in printed().pages:
        for link in links(page):
            action = link.get("/A", {})
            address = str(action.get("/URI", ""))  # type: ignore[attr-defined]
            assert not address or (address.startswith("http") and ".invalid" not in address), address
            target = link.get("/Dest")
            assert address or isinstance(target, ArrayObject) or str(target) in named, link


def test_nothing_waits_for_a_click() -> None:
    words = "".join(map(text, range(len(printed().pages))))
    assert "Clicktoshow" not in words
    assert "Showcodecell" not in words
    for page in rendered.CHAPTERS:
        for solution in rendered.html(page).select("div.solution"):
            pieces = solution.find_all(string=lambda piece: piece.find_parent(class_="math") is None)
            assert max(map(squeezed, pieces), key=len)[-40:] in words, (page, solution["id"])


def test_every_font_travels_with_the_book() -> None:
    missing = set()
    for page in printed().pages:
        for font in (page["/Resources"].get("/Font") or {}).values():  # type: ignore[attr-defined]
            font = font.get_object()
            if font["/Subtype"] == "/Type3":  # its glyphs are drawings in the file
                continue
            one = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
            if not {"/FontFile", "/FontFile2", "/FontFile3"} & set(one["/FontDescriptor"].get_object()):
                missing.add(str(font["/BaseFont"]))
    assert not missing


def raster(resources: DictionaryObject) -> list[str]:
    """Images among what a page draws, also inside of drawings that it draws."""
    found = []
    for name, entry in (resources.get("/XObject") or {}).items():
        drawn = entry.get_object()
        if drawn["/Subtype"] == "/Image":
            found.append(str(name))
        found += raster(drawn.get("/Resources", {}))
    return found


def test_pictures_stay_vectors() -> None:
    assert not [
        page for page in rendered.PAGES if rendered.html(page).select("article img:not([src$='.svg'])")
    ]
    for number, page in enumerate(printed().pages):
        assert not raster(page["/Resources"]), f"page {number + 1} has a raster image"  # type: ignore[arg-type]
