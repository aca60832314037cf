"""Outputs can never be stale: the execution cache is keyed by everything a chapter's output depends on.

jupyter-cache compares code cells only, so on its own it would keep an old output after the package
changed. Here the cache lives in a folder named by a hash of the package's source, the chapters' data and
the pins; when the hash changes, the folder is new (every chapter runs again) and Sphinx is told to read
every page again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

# What an executed cell can see besides its own code.
INPUTS = ("llqr_sam_ref/**/*.py", "book/results/**/*.json", "book/figures/**/*", "requirements.txt")


def source_key(root: Path) -> str:
    """Hash of every file an executed cell can see, in hexadecimal (16 digits)."""
    digest = hashlib.sha256()
    files = {path for pattern in INPUTS for path in root.glob(pattern) if path.is_file()}
    for path in sorted(files):
        if "__pycache__" in path.parts:
            continue
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def cache_folder(root: Path) -> Path:
    """Where the outputs that belong to the present sources are kept."""
    return root / "_build" / "executed" / source_key(root)


def _use_keyed_cache(app: Sphinx, config: Config) -> None:
    config.nb_execution_cache_path = str(cache_folder(Path(app.confdir)))


def _reread_when_the_key_changed(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    key = source_key(Path(app.confdir))
    stale = getattr(env, "llqr_source_key", None) != key
    env.llqr_source_key = key  # type: ignore[attr-defined]  # Sphinx pickles what it finds on env
    return sorted(env.found_docs) if stale else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", _use_keyed_cache)
    app.connect("env-get-outdated", _reread_when_the_key_changed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
