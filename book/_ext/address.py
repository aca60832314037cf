"""Where the book and its repository live, said in one place, and what follows from it.

CITATION.cff names both (``url`` and ``repository-code``); the environment's BOOK_URL and BOOK_REPOSITORY come first,
so that a copy that is published elsewhere points at itself (.github/workflows/pages.yml sets them). From the book's
address follow canonical links, sitemap.xml, and the card that other sites show for a link. From the repository's
follow the buttons that edit a page, report a mistake in it and open it as a notebook on somebody's machine.
What has no address is left out: a link that leads nowhere is worse than none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import citation
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

BRANCH = "main"
# The workflow that publishes the site puts the notebooks that it offers on a branch of their own.
NOTEBOOKS = "notebooks"
CARD = "_static/card.png"
CARD_SHOWS = "Beside a saddle, from one start: SAM ends on the saddle, Monge SAM in the valley."
MISSING = (
    "<section><h1>This page is not here</h1>"
    "<p>It may have moved, or the address has a letter too many. "
    '<a href="{start}">The start page</a> lists all chapters; '
    '<a href="{search}">the search</a> looks through them.</p></section>'
)


class Address(NamedTuple):
    """Where the book is published and where its sources are; empty where nobody said so."""

    url: str
    repository: str

    def launch(self, page: str) -> dict[str, str]:
        """From a service that runs notebooks to the address under which it opens this page."""
        where = urlsplit(self.repository)
        if where.netloc != "github.com":
            return {}
        name = where.path.strip("/")
        lab = urlencode({"urlpath": f"lab/tree/{page}.ipynb"}, safe="/")
        return {
            "Colab": f"https://colab.research.google.com/github/{name}/blob/{NOTEBOOKS}/{page}.ipynb",
            "Binder": f"https://mybinder.org/v2/gh/{name}/{NOTEBOOKS}?{lab}",
        }


def address(root: Path) -> Address:
    """Read it.

    Args:
        root: the folder with CITATION.cff.

    Returns:
        The address; the book's ends with a slash, the repository's does not.

    Raises:
        ConfigError: an address is not one of the web.
    """
    said = citation.read(root)
    url = os.environ.get("BOOK_URL") or said.get("url", "")
    repository = os.environ.get("BOOK_REPOSITORY") or said.get("repository-code", "")
    for name, value in {"BOOK_URL": url, "BOOK_REPOSITORY": repository}.items():
        if value and urlsplit(value).scheme not in {"http", "https"}:
            raise ConfigError(f"{name}={value!r} must begin with https://")
    return Address(url.rstrip("/") + "/" if url else "", repository.rstrip("/").removesuffix(".git"))


def _configure(app: Sphinx, config: Config) -> None:
    here = address(Path(app.srcdir))
    if here.url:
        config.html_baseurl = config.ogp_site_url = here.url
        config.sitemap_url_scheme = "{link}"
        config.sitemap_excludes = [
            "404.html",
            "search.html",
            "genindex.html",
            "py-modindex.html",
            "prf-prf.html",
        ]
        config.ogp_image, config.ogp_image_alt = CARD, CARD_SHOWS
        config.ogp_site_name = config.html_title
        config.ogp_custom_meta_tags = ('<meta name="twitter:card" content="summary_large_image" />',)
    if here.repository:
        config.html_theme_options |= {
            "repository_url": here.repository,
            "repository_branch": BRANCH,
            "use_edit_page_button": True,
            "use_issues_button": True,
        }


def _name_the_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """The theme's buttons in the words of the book, with an icon out of the font that the book cuts."""
    for group in context.get("header_buttons", []):
        if group.get("label") not in {"source-buttons", "source-issues-button"}:
            continue
        group |= {"tooltip": "Mend this page", "icon": "fas fa-pencil"}
        for button in group.get("buttons", [group]):
            if button["label"] == "source-edit-button":
                button |= {"text": "Edit this page", "tooltip": "Change the page's source and suggest it"}
            if button["label"] == "source-issues-button":
                ask = {"title": f"Mistake on {pagename}", "body": "What the page says:\n\nWhat is true:\n"}
                url = button["url"].partition("?")[0]
                button |= {
                    "text": "Report a mistake",
                    "tooltip": "Say what is wrong here",
                    "url": f"{url}?{urlencode(ask)}",
                }


def _page_for_what_is_missing(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    if app.builder.name != "html":
        return
    home = app.builder.get_relative_uri("404", app.config.root_doc)
    body = MISSING.format(start=home, search=app.builder.get_relative_uri("404", "search"))
    yield "404", {"title": "Not here", "body": body}, "page.html"


def _base(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """A server shows 404.html under any address: its links begin at the book's."""
    if pagename == "404" and app.config.html_baseurl:
        context["metatags"] = f'<base href="{app.config.html_baseurl}" />' + context.get("metatags", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; the theme makes its buttons at priority 501."""
    if address(Path(app.srcdir)).url:
        app.setup_extension("sphinx_sitemap")
        app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _name_the_buttons, priority=510)
    app.connect("html-page-context", _base)
    app.connect("html-collect-pages", _page_for_what_is_missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
