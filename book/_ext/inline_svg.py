"""Static figures live in the page, not beside it: SVG images become inline SVG, named by their alternative text."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from page_svg import inline
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _inline_images(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir) / image["uri"]
        if path.suffix != ".svg" or not path.is_file():
            continue
        alt = image.get("alt", "")
        if not alt or alt == str(image["uri"]):
            logger.warning("cell output without alternative text: %s", path.name, location=image)
        image.replace_self(nodes.raw("", inline(path.read_text("utf-8"), alt), format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-resolved", _inline_images)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
