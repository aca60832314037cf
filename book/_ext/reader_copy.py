"""The notebook that a reader takes home: the executed page without what belongs to the build.

The build's own checks (``says`` and ``assert`` in cells that the page does not show) are taken out, so that a
changed number changes what follows and stops nothing. The cell of imports is folded. The scripts and stored
results of long runs, which the page reads from the repository, travel in a folded cell. Directives and roles of
the page, which no notebook knows, become plain Markdown.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from markdown_copy import plain_markdown
from nbformat import NotebookNode

SETUP_CALLS = ("use_book_style", "set_num_threads", "set_printoptions")
INSTALL = (
    "*This is the notebook of a chapter; the page has its live figures. It needs Python 3.10 or newer and the package "
    "`llqr_sam_ref`: in a copy of the repository* `pip install '.[book]'`*, once.*"
)
SETUP = """\
# Set-up, once. Where the package is there, nothing happens.
import importlib.util

if importlib.util.find_spec("llqr_sam_ref") is None:
    %pip install --quiet "llqr-sam-ref[book] @ git+{repository}\"
"""
CARRIED = "# What the chapter reads of long runs, their scripts and stored results, written into a folder of its own."


def reader_copy(
    notebook: NotebookNode, page: str, root: Path, name_of: Callable[[str, str], str], repository: str = ""
) -> NotebookNode:
    """A notebook that runs alone, where only the package is installed.

    Args:
        notebook: the page, executed or not; it is not changed.
        page: its name, for instance ``book/sam/cycle``.
        root: of the repository.
        name_of: from a role and its target (``"eq", "eq-sam-step"``) to what the page prints there.
        repository: its address on the web; with one, the first cell installs the package where it is missing.

    Returns:
        The copy.
    """
    copy = nbformat.reads(nbformat.writes(notebook), as_version=4)
    copy.cells = [cell for cell in copy.cells if cell.cell_type != "raw"]
    without_checks(copy)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    for cell in code:
        tags = cell.metadata.get("tags", [])
        if is_setup(cell.source) or {"remove-cell", "hide-input", "hide-cell"} & set(tags):
            cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata.pop("mystnb", None)
        cell.metadata["tags"] = [tag for tag in tags if tag != "remove-cell"]
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source, (root / page).parent, name_of)
    copy.cells = [cell for cell in copy.cells if cell.source.strip()]
    head = [nbformat.v4.new_markdown_cell(INSTALL, id="install")]
    if repository:
        head = [nbformat.v4.new_code_cell(SETUP.format(repository=repository), id="install")]
    files = carried_files("\n".join(cell.source for cell in code), root)
    if files:
        head.append(_carrying_cell(files, root))
    copy.cells[1:1] = head
    return copy


def is_setup(source: str) -> bool:
    """Whether a cell imports and sets up, and nothing else."""
    statements = _parse(source)
    return bool(statements) and all(
        isinstance(item, ast.Import | ast.ImportFrom)
        or (
            isinstance(item, ast.Expr)
            and isinstance(item.value, ast.Call)
            and ast.unparse(item.value.func).rpartition(".")[2] in SETUP_CALLS
        )
        for item in statements
    )


def without_checks(notebook: NotebookNode) -> None:
    """Take the build's checks out of the cells that no page shows; a cell that nothing needs then goes."""
    needed: set[str] = set()
    kept = []
    for cell in reversed(notebook.cells):
        if cell.cell_type == "code":
            if "remove-cell" in cell.metadata.get("tags", []):
                tree = _WithoutChecks().visit(ast.Module(_parse(cell.source), []))
                if not _bound(tree) & needed:
                    continue
                cell.source = ast.unparse(ast.fix_missing_locations(tree))
            else:
                cell.source = _without_says(cell.source)
            needed |= _used(ast.Module(_parse(cell.source), []))
        kept.append(cell)
    notebook.cells = kept[::-1]


def _without_says(source: str) -> str:
    """A cell that the page shows, with its comments and line breaks: only ``says`` is missing."""
    source = re.sub(r"(import .*?), says\b", r"\1", re.sub(r"\bsays, ", "", source))
    source = re.sub(r"^from llqr_sam_ref.figures import says\n?", "", source, flags=re.MULTILINE)
    return re.sub(r"^says\(.*\)[ \t]*(#.*)?\n?", "", source, flags=re.MULTILINE)


class _WithoutChecks(ast.NodeTransformer):
    """``assert`` and ``says(...)`` become nothing; a loop or a branch left empty goes with them."""

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return None if isinstance(called, ast.Name) and called.id == "says" else node

    def generic_visit(self, node: ast.AST) -> ast.AST | None:  # type: ignore[override]
        super().generic_visit(node)
        if isinstance(node, ast.For | ast.While | ast.If | ast.With) and not node.body:
            if not getattr(node, "orelse", []):
                return None
            node.body = [ast.Pass()]
        if isinstance(node, ast.FunctionDef) and not node.body:
            node.body = [ast.Pass()]
        return node


def _parse(source: str) -> list[ast.stmt]:
    lines = [line if not line.startswith(("%", "!")) else "" for line in source.splitlines()]
    return ast.parse("\n".join(lines)).body


def _bound(tree: ast.AST) -> set[str]:
    """Names that running the code gives a value, or may change."""
    names = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return names | {
        (alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names
    }


def _used(tree: ast.AST) -> set[str]:
    names = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    return names - set(dir(builtins))


def carried_files(code: str, root: Path) -> list[Path]:
    """What of ``book/experiments`` and ``book/results`` the code imports or loads, by way of imports too.

    A data file goes with a script that names it by its path in the repository.
    """
    files: list[Path] = []
    data: list[Path] = []
    waiting = [code]
    while waiting:
        text = waiting.pop()
        data += [root / name for name in re.findall(r"\"(book/[\w/]+\.yml)\"", text)]
        for node in ast.walk(ast.Module(_parse(text), [])):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("book."):
                continue
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = [root / f"{str(module).replace('.', '/')}.py" for module in modules]
            for path in paths:
                if path.is_file() and path not in files:
                    files.append(path)
                    waiting.append(path.read_text("utf-8"))
    names = re.findall(r"\bload\(\"(\w+)\"\)", code)
    results = [root / "book" / "results" / f"{name}.json" for name in names]
    return sorted(files) + [path for path in (*data, *results) if path.is_file()]


def _carrying_cell(files: list[Path], root: Path) -> NotebookNode:
    lines = [
        CARRIED,
        "import sys, tempfile",
        "from pathlib import Path",
        "_carried = Path(tempfile.mkdtemp())",
        "sys.path.insert(0, str(_carried))",
        "for _name, _text in {",
    ]
    for path in files:
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            text = json.dumps(json.loads(text), separators=(",", ":"))
        lines.append(f"    {path.relative_to(root).as_posix()!r}: {text!r},")
    lines += [
        "}.items():",
        "    (_carried / _name).parent.mkdir(parents=True, exist_ok=True)",
        "    (_carried / _name).write_text(_text, encoding='utf-8')",
    ]
    cell = nbformat.v4.new_code_cell("\n".join(lines), id="carried")
    cell.metadata["jupyter"] = {"source_hidden": True}
    return cell
