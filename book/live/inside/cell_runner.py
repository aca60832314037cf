"""A cell as a notebook runs it: what it prints, the value of its last line, the figures it leaves, or its error.

This module runs in the page's Python. Whatever a cell shows is said at once and in order, as an event with a kind
("text", "html", "svg" or "error") and a text.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO, TextIOBase
from types import ModuleType
from typing import Any

Event = dict[str, str]
RICH = {"_repr_html_": "html", "_repr_svg_": "svg"}


class Said(TextIOBase):
    """A stream whose text becomes events, a line or more at a time."""

    def __init__(self, say: Callable[[Event], None]) -> None:
        self.say, self.waiting = say, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.waiting += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.waiting:
            self.waiting, text = "", self.waiting
            self.say({"kind": "text", "text": text})


class CellRunner:
    """Cells that share their names, as those of a notebook do.

    Args:
        say: gets each event.
    """

    def __init__(self, say: Callable[[Event], None]) -> None:
        self.say = say
        self.module = ModuleType("__main__")  # where pickle and dataclasses look for what a cell defines
        vars(self.module).update(__builtins__=builtins, display=self.display)
        self.stream = Said(say)

    def run(self, source: str, name: str) -> bool:
        """Run a cell.

        Args:
            source: its code.
            name: what a traceback calls it.

        Returns:
            Whether it came to its end.
        """
        filename = f"<{name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        main, sys.modules["__main__"] = sys.modules["__main__"], self.module
        try:
            with redirect_stdout(self.stream), redirect_stderr(self.stream):
                self._execute(source, filename)
                self._show_figures()
        except BaseException as error:  # also SystemExit: a cell may not end the page's Python
            _close_figures()
            self._event("error", _traceback(error))
            return False
        finally:
            self.stream.flush()
            sys.modules["__main__"] = main
        return True

    def display(self, *values: Any) -> None:
        """Show values as a notebook does: as HTML or SVG if they have such a form, otherwise in words."""
        for value in values:
            if hasattr(value, "savefig"):  # a figure, now instead of at the end of the cell
                self._show_figure(value)
                continue
            for method, kind in RICH.items():
                rich = None if isinstance(value, type) else getattr(value, method, None)
                if rich is not None and (text := rich()) is not None:
                    self._event(kind, text)
                    break
            else:
                self._event("text", f"{value!r}\n")

    def _execute(self, source: str, filename: str) -> None:
        """Run the statements; if the last one is an expression without a semicolon, show its value."""
        tree = ast.parse(source, filename)
        last = tree.body[-1] if tree.body else None
        shows = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
        if shows:
            tree.body.pop()
        names = vars(self.module)
        exec(compile(tree, filename, "exec"), names)
        if shows:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), filename, "eval"), names)
            if value is not None:
                self.display(value)

    def _show_figures(self) -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else ():
            self._show_figure(pyplot.figure(number))

    def _show_figure(self, figure: Any) -> None:
        """Draw it as the kernel of a notebook does, and put it away."""
        from page_svg import inline  # not before there is a figure: it brings matplotlib

        drawing = StringIO()
        figure.savefig(drawing, format="svg", bbox_inches="tight")
        sys.modules["matplotlib.pyplot"].close(figure)
        self._event("svg", inline(drawing.getvalue(), ""))

    def _event(self, kind: str, text: str) -> None:
        self.stream.flush()
        self.say({"kind": kind, "text": text})


def _close_figures() -> None:
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


def _traceback(error: BaseException) -> str:
    """The traceback from the cell on, without this module's own lines."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))
