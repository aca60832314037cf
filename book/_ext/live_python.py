"""Python in the page, if the book is built with it: ``make book LIVE=1``.

Pages that can run there (live_pages) get a Run button on every code cell. What the button loads lies in ``_live/`` of
the site, in folders named by their content, so that no browser mixes old with new: one of the parts that come from
registries (live_parts), one of our scripts, our package and the pages' cells. Without LIVE there is nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import live_pages
import live_parts
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

SCRIPTS = Path(__file__).resolve().parents[1] / "live"
logger = logging.getLogger(__name__)


def _prepare(app: Sphinx) -> None:
    """Lay out ``_live/``, and find the pages that can use it."""
    app.live_needs = {}  # type: ignore[attr-defined]
    out = Path(app.outdir) / "_live"
    if app.builder.format != "html" or not app.config.live_python:
        shutil.rmtree(out, ignore_errors=True)
        return
    parts = live_parts.ready(Path(app.srcdir) / "_build" / "live")
    half = out / "half"
    shutil.rmtree(half, ignore_errors=True)
    _write_scripts(half, parts, Path(app.srcdir))
    key = _key(half)
    app.live_base, app.live_parts = out / key, out / parts.name  # type: ignore[attr-defined]
    for old in out.iterdir():
        if old.name not in {key, parts.name, "half"}:
            shutil.rmtree(old)
    if not app.live_parts.is_dir():  # type: ignore[attr-defined]
        shutil.copytree(parts, out / parts.name, ignore=shutil.ignore_patterns("shim"))
    if (out / key).is_dir():
        shutil.rmtree(half)
    else:
        half.rename(out / key)


def _write_scripts(folder: Path, parts: Path, root: Path) -> None:
    shutil.copytree(parts / "shim", folder / "shim")
    for pattern in ("*.js", "*.css"):
        for path in SCRIPTS.glob(pattern):
            shutil.copy(path, folder)
    live_parts.archive(folder / "site.tar.gzip", live_pages.site(root))


def _key(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _needs(app: Sphinx) -> dict[str, set[str]]:
    """What each page that can run in the page imports; found out when the first page is written."""
    root, found = Path(app.srcdir), app.live_needs  # type: ignore[attr-defined]
    if not found:
        pages = [page for page in sorted(app.env.found_docs) if (root / f"{page}.md").is_file()]
        codes = {page: live_pages.code_of(live_pages.notebook(root, page)) for page in pages}
        answers = live_pages.tried(
            {page: code for page, code in codes.items() if code}, live_parts.packages(), root
        )
        for page, answer in answers.items():
            if isinstance(answer, str):
                logger.info("no Run button on %s: %s", page, answer)
            else:
                found[page] = answer
    return found


def _add_button(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if doctree is None or app.builder.format != "html" or not app.config.live_python:
        return
    needed = _needs(app).get(pagename)
    if needed is None:
        return
    base, parts = app.live_base, app.live_parts  # type: ignore[attr-defined]
    libraries = [name for name in live_parts.read_parts()["libraries"] if live_parts.packages(name) & needed]
    files = [
        parts / "python.wasm.gzip",
        base / "site.tar.gzip",
        *(parts / f"{name}.tar.gzip" for name in libraries),
    ]
    page = live_pages.notebook(Path(app.srcdir), pagename)
    content = {
        "parts": [(os.path.relpath(file, base), file.stat().st_size) for file in files],
        "files": live_pages.files(page, Path(app.srcdir)),
        "cells": live_pages.cells(page),
    }
    target = base / "pages" / f"{pagename}.json.gzip"
    target.parent.mkdir(parents=True, exist_ok=True)
    live_parts.compress(target, json.dumps(content).encode())
    app.add_css_file(f"../_live/{base.name}/live.css")
    app.add_js_file(f"../_live/{base.name}/button.js", defer="defer", **{"data-page": pagename})


def _tag(app: Sphinx, config: Any) -> None:
    if config.live_python:
        app.tags.add("live")  # what {only} asks for


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("live_python", os.environ.get("LIVE", "") not in {"", "0"}, "html")
    app.connect("config-inited", _tag)
    app.connect("builder-inited", _prepare)
    app.connect("html-page-context", _add_button)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
