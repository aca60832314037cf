"""Nothing in a page that the page does not need: no foreign script, no id twice, no withdrawn role.

Jupyter Book always loads sphinx-thebe and sphinx-comments. Neither is used here, and thebe writes a script
that points at a CDN (twice, so that every page starts with an error in the console). What they registered
is removed before it can do anything.

sphinx-proof and sphinx-exercise give the body of every statement, exercise and solution the same id, and
docutils gives citations roles that ARIA has withdrawn.

The search shows a passage of each page that it finds. It fetches the pages for that, which a browser refuses to a
site that is opened from a disk: there it shows titles.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

UNUSED = ("sphinx_thebe", "sphinx_comments")
UNUSED_STYLES = ("sphinx-thebe.css",)
REPEATED_IDS = (["proof-content"], ["exercise-content"], ["solution-content"])
NO_PASSAGES = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'
WITHDRAWN_ROLES = (' role="doc-biblioentry"', ' role="list"')


def _drop_repeated_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for section in doctree.findall(nodes.section):
        if section["ids"] in REPEATED_IDS:
            section["ids"] = []


def _drop_withdrawn_roles(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    for role in WITHDRAWN_ROLES:
        context["body"] = context.get("body", "").replace(role, "")


def _search_on_a_disk(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if pagename == "search":
        app.add_js_file(None, body=NO_PASSAGES)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx (after Jupyter Book's own extensions, as local extensions are)."""
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if not entry.handler.__module__.startswith(UNUSED)]
    styles = app.registry.css_files
    styles[:] = [entry for entry in styles if entry[0] not in UNUSED_STYLES]
    app.connect("doctree-resolved", _drop_repeated_ids)
    app.connect("html-page-context", _drop_withdrawn_roles)
    app.connect("html-page-context", _search_on_a_disk)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
