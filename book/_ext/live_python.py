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
from sphinx.config import Config
from sphinx.util import logging

SCRIPTS = sorted(path for kind in ("*.js", "*.css") for path in live_parts.FILE.parent.glob(kind))
OFF = {"", "0"}
logger = logging.getLogger(__name__)


def _key(root: Path) -> str:
    """A hash of everything that a page gets besides its own cells, in hexadecimal."""
    digest = hashlib.sha256(live_parts.FILE.read_bytes() + Path(live_parts.__file__).read_bytes())
    for name, content in [*live_pages.site(root), *((path.name, path.read_bytes()) for path in SCRIPTS)]:
        digest.update(name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _decide(app: Sphinx, config: Config) -> None:
    """With Python, a value that makes Sphinx write the pages anew when what they load has changed."""
    if os.environ.get("LIVE", "") not in OFF:
        config.live_python = _key(Path(app.srcdir))
        app.tags.add("live")  # what {only} asks for


class _Live:
    """The folders of ``_live/`` and what pages need, known during one build."""

    def __init__(self) -> None:
        self.scripts, self.parts = Path(), Path()
        self.needs: dict[str, set[str]] | None = None

    def prepare(self, app: Sphinx) -> None:
        """Lay out ``_live/``: what is there and right stays, everything else goes."""
        if app.builder.format != "html":
            return
        out, key = Path(app.outdir) / "_live", app.config.live_python
        ready = live_parts.ready(Path(app.srcdir) / "_build" / "live") if key else None
        for old in out.iterdir() if out.is_dir() else ():
            if ready is None or old.name not in {key, ready.name}:
                shutil.rmtree(old)
        if ready is None:
            return
        self.scripts, self.parts = out / key, out / ready.name
        if not self.parts.is_dir():
            shutil.copytree(ready, self.parts, ignore=shutil.ignore_patterns("shim"))
        if not self.scripts.is_dir():
            half = out / "half"
            shutil.copytree(ready / "shim", half / "shim")
            for path in SCRIPTS:
                shutil.copy(path, half)
            live_parts.archive(half / "site.tar.gzip", live_pages.site(Path(app.srcdir)))
            half.rename(self.scripts)

    def needed_by(self, pagename: str, app: Sphinx) -> set[str] | None:
        """What a page that can run in the page imports, None for one that cannot."""
        if self.needs is None:
            root = Path(app.srcdir)
            pages = [page for page in sorted(app.env.found_docs) if (root / f"{page}.md").is_file()]
            codes = {page: live_pages.code_of(live_pages.notebook(root, page)) for page in pages}
            codes = {page: code for page, code in codes.items() if code}
            answers = live_pages.tried(codes, live_parts.packages(), root)
            self.needs = {page: answer for page, answer in answers.items() if not isinstance(answer, str)}
            for page in answers.keys() - self.needs.keys():
                logger.info("no Run button on %s: %s", page, answers[page])
        return self.needs.get(pagename)

    def add_button(
        self,
        app: Sphinx,
        pagename: str,
        templatename: str,
        context: dict[str, Any],
        doctree: nodes.document | None,
    ) -> None:
        """Write what the page's button loads, and link the button."""
        if doctree is None or app.builder.format != "html" or not app.config.live_python:
            return
        needed = self.needed_by(pagename, app)
        if needed is None:
            return
        names = [name for name in live_parts.read_parts()["libraries"] if live_parts.packages(name) & needed]
        files = [self.parts / "python.wasm.gzip", self.scripts / "site.tar.gzip"]
        files += [self.parts / f"{name}.tar.gzip" for name in names]
        page = live_pages.notebook(Path(app.srcdir), pagename)
        content = {
            "parts": [(os.path.relpath(file, self.scripts), file.stat().st_size) for file in files],
            "files": live_pages.files(page, Path(app.srcdir)),
            "cells": live_pages.cells(page),
        }
        target = self.scripts / "pages" / f"{pagename}.json.gzip"
        target.parent.mkdir(parents=True, exist_ok=True)
        live_parts.compress(target, json.dumps(content).encode())
        app.add_css_file(f"../_live/{self.scripts.name}/live.css")
        app.add_js_file(f"../_live/{self.scripts.name}/button.js", defer="defer", **{"data-page": pagename})


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    live = _Live()
    app.add_config_value("live_python", "", "html")
    app.connect("config-inited", _decide)
    app.connect("builder-inited", live.prepare)
    app.connect("html-page-context", live.add_button)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
