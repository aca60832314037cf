"""The whole book as one PDF, printed by Chromium from the built site; ``make pdf``.

The pages of the site become one document in the order of the table of contents: proofs, hints and solutions open,
links between pages turned into links within the book, a page for each Part. Chromium prints it; figures and formulas
stay vectors and letters. Title and contents, which need the page numbers, are printed after it and put before it.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import ArrayObject, NameObject

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAME = "sharpness-and-geometry.pdf"
SYSTEM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
STYLES = """() => [...document.querySelectorAll('link[rel=stylesheet]')].map(link => link.href)"""
INSIDE = "https://inside.invalid/"  # stands for the book in links of the contents until they are bound
FOOT = '<p style="width:100%;font:8pt sans-serif;color:#5a6270;text-align:center"><span class="pageNumber"></span></p>'


class Part(NamedTuple):
    """A part of the table of contents; the pages before the first are a part without a name."""

    caption: str
    pages: list[str]


def parts(root: Path) -> list[Part]:
    """The book's pages in order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    named = [Part(part["caption"], [entry["file"] for entry in part["chapters"]]) for part in toc["parts"]]
    return [Part("", [toc["root"]]), *named]


class Printed(NamedTuple):
    """A page of the site on its way to paper: its name in the document, its title, what is in it, and its sections."""

    name: str
    title: str
    inside: str
    sections: list[tuple[str, str]]


def launch(playwright: Playwright) -> Browser:
    """Start $CHROMIUM, the system's Chromium or playwright's own, whichever is there."""
    for path in (os.environ.get("CHROMIUM", ""), *SYSTEM, playwright.chromium.executable_path):
        if path and Path(path).is_file():
            return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
    raise RuntimeError(
        "no Chromium: install one, run `playwright install chromium`, or set CHROMIUM to its path"
    )


def collect(tab: Page, site: Path, names: list[str]) -> tuple[dict[str, Printed], list[str]]:
    """Open every page and take what is printed.

    Args:
        tab: where pages are opened; scripts do not run in it.
        site: the folder that ``make book`` wrote.
        names: of the pages, in order.

    Returns:
        The pages by name, and the site's style sheets.
    """
    addresses = [(site / f"{name}.html").as_uri() for name in names]
    places = {address: place for place, address in enumerate(addresses)}
    take, styles = (HERE / "page.js").read_text("utf-8"), dict[str, None]()
    found = {}
    for name, address in zip(names, addresses, strict=True):
        tab.goto(address)
        styles |= dict.fromkeys(tab.evaluate(STYLES))
        taken = tab.evaluate(take, {"place": places[address], "places": places})
        sections = [(section, title) for section, title in taken["sections"]]
        found[name] = Printed(f"p{places[address]}", taken["title"], taken["inside"], sections)
    return found, list(styles)


def document(body: str, styles: list[str]) -> str:
    """A document with these style sheets, in the light colors."""
    sheets = "".join(
        f'<link rel="stylesheet" href="{style}">' for style in [*styles, (HERE / "pdf.css").as_uri()]
    )
    return (
        '<!doctype html><html lang="en" data-theme="light" data-mode="light">'
        f'<head><meta charset="utf-8">{sheets}</head><body><main class="bd-main"><div class="bd-content">'
        f'<div class="bd-article-container"><article class="bd-article">{body}</article></div></div></main></body>'
        "</html>"
    )


def body(book: list[Part], pages: dict[str, Printed]) -> str:
    """All pages in order. A Part begins with what is in it: a link to every section, so that each has an address."""
    text = []
    for part in book:
        inside = [pages[name] for name in part.pages]
        if part.caption:
            lists = "".join(
                f'<div><a href="#{page.name}">{escape(page.title)}</a><ol>'
                + "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in page.sections)
                + "</ol></div>"
                for page in inside
            )
            text.append(f'<section class="part"><h1>{escape(part.caption)}</h1><nav>{lists}</nav></section>')
        text += [f'<section class="page" id="{page.name}">{page.inside}</section>' for page in inside]
    return "".join(text)


def front(book: list[Part], pages: dict[str, Printed], at: dict[str, int]) -> str:
    """Title and contents.

    Args:
        book: the parts.
        pages: what is printed of them.
        at: from a page's name in the document to the number of the page on which it begins.

    Returns:
        The text; a link of the contents leads to an address that :func:`bind` turns into a place in the book.
    """
    cff, config = (
        yaml.safe_load((ROOT / name).read_text("utf-8")) for name in ("CITATION.cff", "_config.yml")
    )
    title, _, about = cff["title"].partition(": ")
    lines = []
    for part in book:
        if part.caption:
            lines.append(f'<li class="part">{escape(part.caption)}</li>')
        for name in part.pages:
            page = pages[name]
            label = page.title if part.caption else "What this book is about"
            lines.append(
                f'<li><a href="{INSIDE}{at[page.name]}" data-page="{at[page.name]}">{escape(label)}</a></li>'
            )
    picture = (ROOT / "book" / "_static" / "road.svg").read_text("utf-8")
    return (
        f'<section class="title"><div><h1>{escape(title)}</h1><p>{escape(about[:1].upper() + about[1:])}</p></div>'
        f"{picture}<div><p>{escape(config['author'])}</p><p>Version {cff['version']}. Text and figures: CC BY 4.0; "
        f'code: MIT license.</p></div></section><section class="page"><h1>Contents</h1>'
        f'<ol class="contents">{"".join(lines)}</ol></section>'
    )


def write(tab: Page, text: str, out: Path, foot: str) -> PdfReader:
    """Print a document."""
    source = out.with_suffix(".html")
    source.write_text(text, "utf-8")
    tab.goto(source.as_uri())
    tab.evaluate("() => document.fonts.ready.then(() => true)")
    tab.pdf(
        path=out,
        prefer_css_page_size=True,
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=foot,
    )
    return PdfReader(out)


def addresses(reader: PdfReader) -> dict[str, int]:
    """From a name that some link of the document leads to, to the number of its page."""
    found = {}
    for name, destination in reader.named_destinations.items():
        number = reader.get_destination_page_number(destination)
        if number is not None:
            found[name.lstrip("/")] = number + 1
    return found


def bind(
    cover: PdfReader, inside: PdfReader, book: list[Part], pages: dict[str, Printed], at: dict[str, int]
) -> PdfWriter:
    """Title and contents before the pages, links between them, bookmarks for Parts, pages and sections."""
    shift = len(cover.pages)
    writer = PdfWriter(clone_from=inside)
    writer.merge(0, cover, import_outline=False)
    for page in writer.pages[:shift]:
        for entry in page.get("/Annots", ArrayObject()):
            link = entry.get_object()
            address = str(link.get("/A", {}).get("/URI", ""))
            if address.startswith(INSIDE):
                place = writer.pages[shift + int(address.removeprefix(INSIDE)) - 1]
                del link["/A"]
                link[NameObject("/Dest")] = ArrayObject([place.indirect_reference, NameObject("/Fit")])
    writer.set_page_label(0, shift - 1, style=PageLabelStyle.LOWERCASE_ROMAN)
    writer.set_page_label(shift, len(writer.pages) - 1, style=PageLabelStyle.DECIMAL, start=1)
    for part in book:
        first = shift + at[pages[part.pages[0]].name] - 1
        above = writer.add_outline_item(title=part.caption, page_number=first - 1) if part.caption else None
        for name in part.pages:
            taken = pages[name]
            own = writer.add_outline_item(
                title=taken.title, page_number=shift + at[taken.name] - 1, parent=above
            )
            for section, title in taken.sections:
                if section in at:
                    writer.add_outline_item(title=title, page_number=shift + at[section] - 1, parent=own)
    return writer


def make(site: Path, out: Path) -> None:
    """Print the book.

    Args:
        site: the folder that ``make book`` wrote.
        out: the file to write; its folder takes the steps on the way.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    book = parts(ROOT)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        tab = browser.new_page()
        tab.route("**/*.js*", lambda route: route.abort())
        pages, styles = collect(tab, site, [name for part in book for name in part.pages])
        inside = write(tab, document(body(book, pages), styles), out.with_name("inside.pdf"), FOOT)
        at = {pages[book[0].pages[0]].name: 1} | addresses(inside)
        cover = write(
            tab, document(front(book, pages, at), styles), out.with_name("cover.pdf"), "<span></span>"
        )
        browser.close()
    writer = bind(cover, inside, book, pages, at)
    writer.add_metadata({"/Title": pages[book[0].pages[0]].title, "/Author": "The llqr_sam_ref authors"})
    writer.write(out)


if __name__ == "__main__":
    target = ROOT / "_build" / "pdf" / NAME
    make(ROOT / "_build" / "html", target)
    print(f"The book is at {target}")
