"""The book as `make book` renders it, for tests/pages and tests/site.

The build is the one of the Makefile, into the same folder and with the same cache: after `make book` it has
nothing to do, and on a fresh clone it executes each chapter once.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import nbformat
import yaml  # type: ignore[import-untyped]
from bs4 import BeautifulSoup
from filelock import FileLock
from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
BUILD = ["build", ".", "-W", "-n", "--keep-going"]


def _files(entry: Any) -> list[str]:
    """Every ``root`` and ``file`` of a table of contents, in order."""
    if isinstance(entry, dict):
        own = [value for key, value in entry.items() if key in {"root", "file"}]
        return own + [name for value in entry.values() for name in _files(value)]
    return [name for item in entry for name in _files(item)] if isinstance(entry, list) else []


TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = _files(TOC)
CHAPTERS = _files([part for part in TOC["parts"] if part.get("numbered")])


def source(page: str) -> str:
    """The text that an author wrote for this page."""
    return (ROOT / f"{page}.md").read_text(encoding="utf-8")


NOTEBOOKS = [page for page in PAGES if "```{code-cell}" in source(page)]


@functools.cache
def _run() -> subprocess.CompletedProcess[str]:
    """One build a test process, whether it succeeds or not; one at a time, and only the first has work to do."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), *BUILD]
    HTML.parent.mkdir(exist_ok=True)
    with FileLock(HTML.parent / "building.lock"):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def build() -> Path:
    """Render the book (or what changed since the last time) and return its folder."""
    result = _run()
    complaints = [line for line in result.stderr.splitlines() if "WARNING:" in line or "Error" in line]
    assert result.returncode == 0, "the book does not build:\n" + "\n".join(complaints)
    return HTML


@functools.cache
def html(page: str) -> BeautifulSoup:
    """A built page, parsed."""
    return BeautifulSoup((build() / f"{page}.html").read_text(encoding="utf-8"), "html.parser")


@functools.cache
def executed(page: str) -> nbformat.NotebookNode:
    """The page's source with the outputs that the build stored for exactly this source and this package."""
    build()
    notebook = jupytext.read(ROOT / f"{page}.md")
    cache = get_cache(extension("freshness").cache_folder(ROOT))
    return cache.merge_match_into_notebook(notebook)[1]


def extension(name: str) -> ModuleType:
    """One of the book's Sphinx extensions (book/_ext is not a package)."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
