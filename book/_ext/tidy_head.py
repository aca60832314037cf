"""Nothing in a page's head that the page does not need: no request leaves the site by itself.

Jupyter Book always loads sphinx-thebe and sphinx-comments. Neither is used here, and thebe writes a script
that points at a CDN (twice, so that every page starts with an error in the console). What they registered
is removed before it can do anything.
"""

from __future__ import annotations

from sphinx.application import Sphinx

UNUSED = ("sphinx_thebe", "sphinx_comments")
UNUSED_STYLES = ("sphinx-thebe.css",)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx (after Jupyter Book's own extensions, as local extensions are)."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener for listener in listeners if not listener.handler.__module__.startswith(UNUSED)
        ]
    app.registry.css_files[:] = [style for style in app.registry.css_files if style[0] not in UNUSED_STYLES]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
