"""Chapters may import ``book.experiments``: kernels get the repository's root on their path."""

from __future__ import annotations

import os
from pathlib import Path

from sphinx.application import Sphinx

ROOT = str(Path(__file__).resolve().parents[2])


def setup(app: Sphinx) -> dict[str, bool]:
    """Put the root in front of PYTHONPATH, which the kernels inherit."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, paths)])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
