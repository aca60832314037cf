"""Which assertions of a theorem's test fail under which mutation.

A test that is run as it stands stops at its first failing assertion, and what stands below is never asked. Here each
assertion (an ``assert``, a call of ``numpy.testing``, a ``pytest.raises``) notes its outcome and the test goes on.
Only a false statement about numbers counts as a failure: not a NaN, not a shape that does not fit, not another
exception.
"""

from __future__ import annotations

import ast
import inspect
import signal
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType
from typing import Any, ClassVar

import numpy as np
import pytest

HELD, FAILED, BROKEN = "held", "failed", "broken"
LIMIT = 20.0  # seconds of the processor for one run: a false statement may never come to an end


@dataclass(frozen=True)
class Assertion:
    """One assertion of a test.

    Attributes:
        number: in the test, from 0.
        text: its source, on one line.
    """

    number: int
    text: str


@dataclass
class Outcomes:
    """What the assertions of a test came to in one run.

    Attributes:
        seen: by an assertion's number, all of its outcomes.
        stopped: what ended the test before its end; None if nothing did.
    """

    seen: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    stopped: str | None = None

    @property
    def failed(self) -> set[int]:
        """Assertions that were false."""
        return {number for number, outcomes in self.seen.items() if FAILED in outcomes}

    silent: ClassVar = pytest.fail.Exception
    """What ``pytest.raises`` raises where nothing was."""

    def __call__(self, number: int, ask: Callable[[], Any], operands: Callable[[], tuple[Any, ...]]) -> None:
        """Ask an assertion, and remember what it says."""
        try:
            answer = ask()
            holds = answer is None or bool(answer)  # a call of numpy.testing returns nothing
        except AssertionError:
            holds = False
        except Exception:
            self.seen[number].add(BROKEN)
            return
        if holds:
            self.seen[number].add(HELD)
        else:
            self.seen[number].add(FAILED if _sound(operands) else BROKEN)


def _sound(operands: Callable[[], tuple[Any, ...]]) -> bool:
    """Whether what was compared are numbers, of shapes that fit."""
    try:
        values = [np.asarray(value) for value in operands()]
    except Exception:  # an operand that is no number: a type, a name, ragged lists
        return True
    numbers = [value for value in values if value.dtype.kind in "fc"]
    if any(np.isnan(value).any() for value in numbers):
        return False
    try:
        np.broadcast_shapes(*(value.shape for value in numbers))
    except ValueError:
        return False
    return True


class _Noting(ast.NodeTransformer):
    """Replaces assertions by calls of ``__note__``."""

    def __init__(self) -> None:
        self.assertions: list[Assertion] = []

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return self._noted(node, node.test, _compared(node.test))

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("np.testing.assert_"):
            return self._noted(node, call, list(call.args))
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        if not any(ast.unparse(item.context_expr).startswith("pytest.raises") for item in node.items):
            return self.generic_visit(node)
        number = len(self.assertions)
        self.assertions.append(Assertion(number, f"with {', '.join(map(ast.unparse, node.items))}"))
        wrong = ast.parse(f"__note__({number}, lambda: False, lambda: ())").body
        right = ast.parse(f"__note__({number}, lambda: True, lambda: ())").body
        caught = ast.parse("(AssertionError, __note__.silent)", mode="eval").body
        handler = ast.ExceptHandler(caught, None, wrong)
        return ast.copy_location(ast.Try([node], [handler], right, []), node)

    def _noted(self, node: ast.stmt, asked: ast.expr, operands: list[ast.expr]) -> ast.AST:
        number = len(self.assertions)
        self.assertions.append(Assertion(number, " ".join(ast.unparse(node).split())))
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        arguments = [
            ast.Constant(number),
            ast.Lambda(nothing, asked),
            ast.Lambda(nothing, ast.Tuple(operands, ast.Load())),
        ]
        call = ast.Call(ast.Name("__note__", ast.Load()), arguments, [])
        return ast.copy_location(ast.Expr(call), node)


def _compared(test: ast.expr) -> list[ast.expr]:
    """What an assertion compares: the sides of comparisons, the arguments of calls."""
    if isinstance(test, ast.Compare):
        return [test.left, *test.comparators]
    if isinstance(test, ast.BoolOp):
        return [part for value in test.values for part in _compared(value)]
    if isinstance(test, ast.UnaryOp):
        return _compared(test.operand)
    if isinstance(test, ast.Call):
        return [
            argument for argument in test.args if not isinstance(argument, ast.GeneratorExp | ast.Starred)
        ]
    return [test]


@cache
def _compiled(test: Callable[..., None]) -> tuple[CodeType, tuple[Assertion, ...]]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(test)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list = []
    # Defaults are the test's own, evaluated where it was defined.
    function.args.defaults = []
    function.args.kw_defaults = [None] * len(function.args.kwonlyargs)
    noting = _Noting()
    changed = ast.fix_missing_locations(noting.visit(tree))
    code: CodeType = compile(changed, inspect.getsourcefile(test) or "", "exec")
    return code, tuple(noting.assertions)


def assertions(test: Callable[..., None]) -> tuple[Assertion, ...]:
    """The assertions of a test, in order."""
    return _compiled(test)[1]


def outcomes(test: Callable[..., None], replacements: Mapping[str, Any]) -> Outcomes:
    """Run a test to its end, whatever its assertions say.

    Args:
        test: a theorem's test.
        replacements: of its arguments; the others have their defaults.

    Returns:
        What every assertion came to.
    """
    code, _ = _compiled(test)
    found = Outcomes()
    names = {**test.__globals__, "__note__": found}
    exec(code, names)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(test).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    try:
        with np.errstate(all="ignore"), _limited():
            names[test.__name__](**{**defaults, **replacements})
    except AssertionError as error:  # of a helper
        found.stopped = f"AssertionError: {error}"
    except Exception as error:
        found.stopped = f"{type(error).__name__}: {error}"
    return found


@contextmanager
def _limited() -> Iterator[None]:
    """Inside, a TimeoutError after so much of the processor's time; where there is such a clock."""

    def over(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
