"""Outputs can never be stale, and a failed build is never taken for a finished one.

jupyter-cache compares code cells only, so on its own it would keep an old output after the package changed.
Here the cache lives in a folder named by a hash of everything a cell can see besides its own code; when the
hash changes, the folder is new and every chapter runs again. Sphinx reports the warnings of a page only when
it reads the page, so a second build after a failed one would pass: the environment of a build that warned is
thrown away. Pages whose source is gone are deleted.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.config import Config

# What an executed cell can see besides its own code.
INPUTS = ("llqr_sam_ref/**/*.py", "book/experiments/**/*.py", "book/results/**/*.json", "requirements.txt")


def source_key(root: Path) -> str:
    """Hash of every file an executed cell can see, in hexadecimal (16 digits)."""
    digest = hashlib.sha256()
    files = {path for pattern in INPUTS for path in root.glob(pattern) if path.is_file()}
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def cache_folder(root: Path) -> Path:
    """Where the outputs that belong to the present sources are kept."""
    return root / "_build" / "executed" / source_key(root)


def _use_keyed_cache(app: Sphinx, config: Config) -> None:
    # An environment value: when it changes, Sphinx reads every page again.
    config.nb_execution_cache_path = str(cache_folder(Path(app.srcdir)))


def _forget_a_build_that_warned(app: Sphinx, error: Exception | None) -> None:
    if app._warncount:
        (Path(app.doctreedir) / ENV_PICKLE_FILENAME).unlink(missing_ok=True)


def _delete_pages_that_left(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    for page in (Path(app.outdir) / "book").rglob("*.html"):
        if not (Path(app.srcdir) / page.relative_to(app.outdir)).with_suffix(".md").is_file():
            page.unlink()


def _write_modules_anew(app: Sphinx) -> list[tuple[str, dict[str, str], str]]:
    """Just before viewcode writes its copies of the modules' source; on its own it would go by dates,
    which a checkout may set back. A build with nothing to do does not come here, and keeps what there is."""
    if app.builder.format == "html":
        shutil.rmtree(Path(app.outdir) / "_modules", ignore_errors=True)
    return []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", _use_keyed_cache)
    app.connect("builder-inited", _delete_pages_that_left)
    app.connect("html-collect-pages", _write_modules_anew, priority=100)
    app.connect("build-finished", _forget_a_build_that_warned)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
