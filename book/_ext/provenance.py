"""The last line of every executed page: what it was computed with, when, and how long it took."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from freshness import source_key
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

import llqr_sam_ref


def _line(app: Sphinx, docname: str) -> str:
    run = NbMetadataCollector.get_exec_data(app.env, docname)
    if not run or run["runtime"] is None:
        return ""
    day = datetime.fromtimestamp(run["mtime"], tz=timezone.utc).strftime("%Y-%m-%d")
    package = f"llqr_sam_ref {llqr_sam_ref.__version__} (source {source_key(Path(app.srcdir))})"
    others = f"NumPy {version('numpy')}, Python {platform.python_version()}"
    return f"Computed on {day} in {run['runtime']:.1f} s with {package}, {others}."


def _append(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    line = _line(app, pagename) if doctree is not None else ""
    if line:
        context["body"] += f'<p class="provenance">{line}</p>\n'


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
