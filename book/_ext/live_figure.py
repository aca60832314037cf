"""Figures that compute in the page: the directive ``live-figure``.

    ```{live-figure} cycle
    :name: fig-cycle
    :h: 4
    Caption, beginning with the conclusion.
    ```

The page gets the custom element with the picture of the default state inside, drawn at build time, and the
sentence that says what it shows: without JavaScript, in print and to a screen reader the figure is complete.
The script that brings it to life is one classic script per page (modules do not load from a file on disk),
written to ``_figures/`` and linked only on pages that have a live figure. ``ask`` is a question with
answers (``:ask: Who wins? | the hare | the hedgehog``), which the reader answers or passes over before the figure
moves. Everything but ``name`` and ``ask`` is an option of the figure itself and is handed on.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

FIGURES = Path(__file__).resolve().parents[1] / "figures"
sys.path.insert(0, str(FIGURES))
from bundle import bundle, fallback  # noqa: E402  (found on the path set above)

logger = logging.getLogger(__name__)


class _AnyOption(dict[str, Any]):
    """Accept every option as text: which ones exist is the figure's business."""

    def __missing__(self, key: str) -> Any:
        return directives.unchanged


class LiveFigure(SphinxDirective):
    """A numbered figure around ``<live-figure kind=...>``."""

    required_arguments = 1
    has_content = True
    option_spec = _AnyOption(name=directives.unchanged)

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        self.assert_has_content()
        kind = self.arguments[0]
        settings = {key: value for key, value in self.options.items() if key != "name"}
        for source in FIGURES.glob("*.*"):
            self.env.note_dependency(str(source))
        try:
            picture, sentence = fallback(kind, settings)
        except (ValueError, RuntimeError) as error:
            logger.warning("live-figure %s: %s", kind, error, location=self.get_location())
            return []
        attributes = "".join(
            f' {"data-ask" if key == "ask" else key}="{escape(value)}"' for key, value in settings.items()
        )
        html = (
            f'<live-figure kind="{kind}"{attributes}>{picture}'
            f'<p class="lf-sentence">{escape(sentence)}</p></live-figure>'
        )
        figure = nodes.figure("", nodes.raw("", html, format="html"), classes=["live"])
        caption = nodes.caption()
        self.state.nested_parse(self.content, self.content_offset, caption)
        caption.children = [child for paragraph in caption.children for child in paragraph.children]
        figure += caption
        figure["live_kind"] = kind
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure]


def _link_script(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Write the page's script and link it with the style sheet of the controls."""
    figures = doctree.findall(nodes.figure) if doctree is not None else ()
    kinds = sorted({figure["live_kind"] for figure in figures if "live_kind" in figure})
    if not kinds:
        return
    name = f"{'-'.join(kinds)}.js"
    folder = Path(app.outdir) / "_figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(bundle(kinds), encoding="utf-8")
    app.add_css_file("live-figure.css")
    app.add_js_file(f"../_figures/{name}", defer="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("live-figure", LiveFigure)
    app.connect("html-page-context", _link_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
