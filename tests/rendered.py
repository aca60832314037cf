"""The book as `make book` renders it, for tests/pages and tests/site.

The build is the one of the Makefile, into the same folder and with the same cache: after `make book` it has
nothing to do, and on a fresh clone it executes each chapter once.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
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


def make_book() -> list[str]:
    """Do what `make book` does, and return what it complains about."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), *BUILD]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if "WARNING:" in line or "Error" in line]
    return (lines or [result.stderr[-2000:]]) if result.returncode else []


@functools.cache
def _complaints() -> list[str]:
    """What the build complained about; the processes of one test run build once, and read it when it is done."""
    this_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process {os.getpid()}")
    record = HTML.parent / "tested.json"
    record.parent.mkdir(exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        if record.is_file():
            built = json.loads(record.read_text(encoding="utf-8"))
            if built["run"] == this_run:
                return list(built["complaints"])
        complaints = make_book()
        record.write_text(json.dumps({"run": this_run, "complaints": complaints}), encoding="utf-8")
        return complaints


def build() -> Path:
    """Render the book (or what changed since the last time) and return its folder."""
    assert not _complaints(), "the book does not build:\n" + "\n".join(_complaints())
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
    folder = ROOT / "book" / "_ext"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # extensions find each other there, as in the build
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
