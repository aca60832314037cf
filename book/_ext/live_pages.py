"""Which pages run in the page, what they need there, and their cells.

No list is kept by hand: the imports of every page are tried where nothing can be imported but what travels to the
page. A page whose imports all succeed has a button; the others need PyTorch, a process or a package that stays here.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode
from reader_copy import carried_files, without_checks

INSIDE = Path(__file__).resolve().parents[1] / "live" / "inside"
OURS = ("llqr_sam_ref", "book")
PURE = ("jaxtyping", "wadler_lindig")  # what the package needs and the library has not, taken from here
NOT_IN_A_PAGE = {"multiprocessing", "signal", "socket", "subprocess", "threading"}
# A process of its own for each page, so that what one has imported is not there for the next.
TRIAL = """
import json, os, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
allowed, pages = json.load(sys.stdin)
class OnlyWhatTravels(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        return super().find_spec(name, path, target) if top in allowed or top.startswith("_sysconfigdata") else None
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyWhatTravels]
import matplotlib.pyplot  # once for all pages: most draw
for page, statements in pages.items():
    answer, question = os.pipe()
    if not os.fork():
        try:
            exec(statements, {"__name__": "__main__"})
            found = sorted({name.partition(".")[0] for name in sys.modules})
        except ImportError as error:
            found = str(error)
        os.write(question, json.dumps(found).encode())
        os._exit(0)
    os.close(question)
    with os.fdopen(answer) as said:
        print(json.dumps([page, json.loads(said.read() or '"it ended its process"')]))
    os.wait()
"""


def notebook(root: Path, page: str) -> NotebookNode:
    """The page as an author wrote it."""
    return jupytext.read(root / f"{page}.md")


def imports(code: str) -> str:
    """The import statements of some code, wherever they stand, one a line."""
    lines = "\n".join(line if not line.startswith(("%", "!")) else "" for line in code.splitlines())
    found = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, found))


def tried(codes: Mapping[str, str], packages: Collection[str], root: Path) -> dict[str, set[str] | str]:
    """Try the imports of pages where there is nothing but what travels.

    Args:
        codes: of each page, all cells together.
        packages: those that travel besides the standard library and our own.
        root: of the repository, from where the package and ``book`` are imported.

    Returns:
        For a page that can run in the page the names of the top-level modules that it loads, directly or by way
        of something else; for another what it misses, in words.

    Raises:
        RuntimeError: the trial itself failed.
    """
    statements = {page: imports(code) for page, code in codes.items()}
    kept_out = {page: _names(text) & NOT_IN_A_PAGE for page, text in statements.items()}
    trial = {page: text for page, text in statements.items() if not kept_out[page]}
    local = {path.stem for path in INSIDE.iterdir()}
    allowed = [*sys.stdlib_module_names, *packages, *OURS, *PURE, *local]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRIAL],
        input=json.dumps([allowed, trial]),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(INSIDE), str(root)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"the imports of the pages could not be tried:\n{result.stderr}")
    answers = dict(json.loads(line) for line in result.stdout.splitlines())
    return {
        page: f"no page can have {', '.join(sorted(names))}" if names else _answer(answers[page])
        for page, names in kept_out.items()
    }


def _answer(found: list[str] | str) -> set[str] | str:
    return found if isinstance(found, str) else set(found)


def _names(statements: str) -> set[str]:
    """The top-level packages that import statements name."""
    nodes = ast.walk(ast.parse(statements))
    modules = [
        name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    return {name.partition(".")[0] for name in modules}


def code_of(page: NotebookNode) -> str:
    """All code of a page."""
    return "\n".join(cell.source for cell in page.cells if cell.cell_type == "code")


def cells(page: NotebookNode) -> list[dict[str, Any]]:
    """The cells that run in the page, in order, and whether the page shows them.

    Of those that it does not show the build's checks are taken out: a reader who changes a number shall see what
    follows from it.
    """
    shown = {}
    for place, cell in enumerate(page.cells):
        cell.metadata["place"] = place
        if "remove-cell" not in cell.metadata.get("tags", []):
            shown[place] = cell.source
    without_checks(page)
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    return [
        {"source": shown.get(place, cell.source), "shown": place in shown}
        for cell in code
        for place in [cell.metadata["place"]]
    ]


def files(page: NotebookNode, root: Path) -> dict[str, str]:
    """The scripts and stored results that the page reads from the repository, by their names there."""
    return {
        path.relative_to(root).as_posix(): path.read_text("utf-8")
        for path in carried_files(code_of(page), root)
    }


def site(root: Path) -> Iterable[tuple[str, bytes]]:
    """What is imported in the page beside the library: our package, what it needs, and the cell runner."""
    for path in sorted((root / "llqr_sam_ref").rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_bytes()
    for package in PURE:
        for file in sorted(distribution(package).files or ()):
            if file.suffix == ".py" or ".dist-info/" in file.as_posix():  # name, version, license
                yield file.as_posix(), file.read_binary()
    for path in sorted(INSIDE.rglob("*.py")):
        yield path.relative_to(INSIDE).as_posix(), path.read_bytes()
    yield "page_svg.py", Path(__file__).with_name("page_svg.py").read_bytes()
