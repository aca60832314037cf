"""What follows from the book's address and its repository's; nothing pretends to an address that nobody gave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup

from tests import rendered

URL, REPOSITORY = "https://example.org/book", "https://github.com/someone/book"
CONF = """\
import sys
sys.path[:0] = [{extensions!r}]
extensions = ["address", "citation", "myst_parser"]
html_theme, html_title, root_doc, copyright = "sphinx_book_theme", "A Book", "index", "2031"
html_context = {{}}
html_theme_options = {{}}
html_sourcelink_suffix = ""
source_suffix = {{".md": "markdown"}}
"""
CFF = {
    "authors": [{"name": "The tool_box authors"}, {"family-names": "Gauß", "given-names": "C. F."}],
    "title": "Sums & squares: 100%",
    "version": "1.2.0",
}


def built(place: Path, monkeypatch: pytest.MonkeyPatch, cff: str = "", **environment: str) -> Path:
    """A book of two pages, built with the book's own extensions."""
    source = place / "source"
    (source / "part").mkdir(parents=True)
    (source / "index.md").write_text(
        "# A Book\n\nWhat it is about.\n\n```{toctree}\npart/page\n```\n", "utf-8"
    )
    (source / "part" / "page.md").write_text("# A Page\n\nText of the page.\n", "utf-8")
    (source / "CITATION.cff").write_text(cff or "title: A Book\n", "utf-8")
    folder = str(rendered.ROOT / "book" / "_ext")
    (source / "conf.py").write_text(CONF.format(extensions=folder), "utf-8")
    for name in ("BOOK_URL", "BOOK_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(source), str(place / "html")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    assert "WARNING" not in run.stderr, run.stderr
    return place / "html"


def page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")


def meta(soup: BeautifulSoup) -> dict[str, str]:
    return {
        str(tag.get("property") or tag.get("name")): str(tag["content"])
        for tag in soup.select("meta[content]")
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("published")
        return built(place, patch, BOOK_URL=URL, BOOK_REPOSITORY=REPOSITORY + ".git")


def test_pages_name_their_address(published: Path) -> None:
    for name in ("index", "part/page"):
        canonical = page(published, name).select_one("link[rel=canonical]")
        assert canonical is not None
        assert canonical["href"] == f"{URL}/{name}.html"


def test_the_map_of_the_site_lists_the_pages_and_none_of_the_tools(published: Path) -> None:
    found = ElementTree.parse(published / "sitemap.xml").getroot()
    places = {str(entry.text) for entry in found.iter() if entry.tag.endswith("loc")}
    assert places == {f"{URL}/index.html", f"{URL}/part/page.html"}


def test_a_link_to_a_page_shows_its_card(published: Path) -> None:
    told = meta(page(published, "part/page"))
    assert told["og:title"] == "A Page"
    assert told["og:url"] == f"{URL}/part/page.html"
    assert told["og:image"] == f"{URL}/_static/card.png"
    assert told["og:description"] == "Text of the page."
    assert told["og:image:alt"]
    assert told["twitter:card"] == "summary_large_image"


def test_a_reader_can_edit_a_page_and_report_a_mistake_in_it(published: Path) -> None:
    soup = page(published, "part/page")
    links = {
        tag.get_text(strip=True): str(tag["href"]) for tag in soup.select(".article-header-buttons a[href]")
    }
    assert links["Edit this page"] == f"{REPOSITORY}/edit/main/part/page.md"
    assert links["Report a mistake"].startswith(f"{REPOSITORY}/issues/new?title=Mistake+on+part%2Fpage&")


def test_the_page_for_what_is_missing_finds_its_links_from_everywhere(published: Path) -> None:
    soup = page(published, "404")
    first = soup.select_one("head [href]")
    assert first is not None
    assert (first.name, first["href"]) == ("base", f"{URL}/")
    assert soup.select_one('article a[href="index.html"]') is not None


def test_without_an_address_there_is_no_trace_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = built(tmp_path, monkeypatch)
    assert not (site / "sitemap.xml").exists()
    for name in ("index", "part/page", "404"):
        soup = page(site, name)
        assert not soup.select("link[rel=canonical], base")
        assert not [key for key in meta(soup) if key.startswith(("og:", "twitter:"))]
        assert not soup.select('.article-header-buttons a[href^="http"]')


def test_the_citation_file_can_say_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"title: A Book\nurl: {URL}/\nrepository-code: {REPOSITORY}\n"
    site = built(tmp_path, monkeypatch, said, BOOK_URL="https://example.com/copy")
    canonical = page(site, "index").select_one("link[rel=canonical]")
    assert canonical is not None
    assert canonical["href"] == "https://example.com/copy/index.html"  # the environment comes first
    assert page(site, "index").select(f'a[href^="{REPOSITORY}/edit/"]')


def test_an_address_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"BOOK_URL='example\.org' must begin with https://"):
        built(tmp_path, monkeypatch, BOOK_URL="example.org")


def test_notebooks_open_where_the_service_can_fetch_them() -> None:
    launch = rendered.extension("address").Address(URL, REPOSITORY).launch("book/sam/cycle")
    assert launch["Colab"] == (
        "https://colab.research.google.com/github/someone/book/blob/notebooks/book/sam/cycle.ipynb"
    )
    assert launch["Binder"] == (
        "https://mybinder.org/v2/gh/someone/book/notebooks?urlpath=lab/tree/book/sam/cycle.ipynb"
    )
    assert rendered.extension("address").Address(URL, "https://git.example.org/a/b").launch("x") == {}
    assert rendered.extension("address").Address(URL, "").launch("x") == {}


def test_the_entry_for_a_bibliography_is_made_of_the_citation_file() -> None:
    bibtex = rendered.extension("citation").bibtex
    assert bibtex(CFF, "2031") == (
        "@misc{toolbox2031,\n"
        "  author = {{The tool\\_box authors} and Gauß, C. F.},\n"
        "  title  = {{Sums \\& squares: 100\\%}},\n"
        "  year   = {2031},\n"
        "  note   = {Version 1.2.0},\n"
        "}"
    )
    assert "2029" in bibtex(CFF | {"date-released": "2029-05-01", "url": URL}, "2031").splitlines()[3]
    assert f"  url    = {{{URL}}}," in bibtex(CFF | {"url": URL}, "2031")


def test_the_start_page_shows_the_entry() -> None:
    citation = rendered.extension("citation")
    block = rendered.html("book/intro").select_one("#to-cite-the-book .highlight pre")
    assert block is not None
    assert block.get_text().strip() == citation.bibtex(citation.read(rendered.ROOT), "2026")


def test_the_card_is_what_its_program_draws(tmp_path: Path) -> None:
    import matplotlib.image
    import numpy as np

    drawn = tmp_path / "card.png"
    subprocess.run([sys.executable, "-m", "book.figures.card", str(drawn)], cwd=rendered.ROOT, check=True)
    found, stored = (
        matplotlib.image.imread(path) for path in (drawn, rendered.ROOT / "book/_static/card.png")
    )
    assert stored.shape[:2] == (630, 1200)
    assert float(np.abs(found - stored).mean()) < 1e-3  # letters may be rounded otherwise elsewhere


def test_the_icon_of_the_site_is_in_the_books_colors() -> None:
    from llqr_sam_ref.figures import METHODS

    icon = (rendered.ROOT / "book/_static/favicon.svg").read_text("utf-8")
    for name in ("llqr", "llqr_sam"):
        assert METHODS[name].light in icon
        assert {METHODS[name].dark, METHODS[name].text_dark} & {
            color for color in icon.replace(";", " ").split()
        }
    link = rendered.html("book/intro").select_one("link[rel=icon]")
    assert link is not None
    assert (rendered.build() / "book" / str(link["href"]).partition("?")[0]).resolve().name == "favicon.svg"
