"""What a run depends on, as a number: runs that were made by other code are not mistaken for this code's.

Comments, docstrings and layout may change; anything that could change a number does.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import llqr_sam_ref
from book.experiments import digits_noise, digits_walk
from book.experiments.peers import data, run
from book.experiments.peers.methods import METHODS, Place
from book.experiments.peers.tasks import TASKS

PACKAGE = Path(llqr_sam_ref.__file__).parent
EMPTY = re.compile(r"(, )?\b\w+=\[\]")  # fields that only newer versions have, or leave out
COMMON: tuple[Any, ...] = (data.__file__, run.__file__, digits_noise.splits, digits_walk.ill_scaled, Place)


@cache
def fingerprint(task: str, method: str) -> str:
    """A number for the code behind the runs of a method on a task.

    Args:
        task: a row of the tasks.
        method: a row of the methods.

    Returns:
        Sixteen hexadecimal digits.
    """
    row = METHODS[method]
    files = [path for name in ("nets", *row.code) for path in _files(PACKAGE / name)]
    parts = [
        Path(c).read_text(encoding="utf-8") if isinstance(c, str) else inspect.getsource(c)
        for c in (*COMMON, *TASKS[task].code)
    ]
    parts += [path.read_text(encoding="utf-8") for path in files]
    parts += [inspect.getsource(part) for part in (TASKS[task].make, row.build, row.decays)]
    return _digest(parts)


def digest(*files: str) -> str:
    """The same for a study that is made of whole files.

    Args:
        files: their paths.

    Returns:
        Sixteen hexadecimal digits.
    """
    return _digest([Path(file).read_text(encoding="utf-8") for file in files])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(map(meaning, parts)).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def meaning(source: str) -> str:
    """The syntax tree of a piece of code without its docstrings, the same under every version of Python.

    Args:
        source: a file, a function or a class.

    Returns:
        The tree as text.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return EMPTY.sub("", ast.dump(tree))


def _is_text(line: ast.stmt) -> bool:
    """A docstring, or the text below an attribute."""
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )
