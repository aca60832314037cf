"""The link between a theorem on a page, its test, and the mutation that its test must catch.

A test takes the ingredient that a mutation replaces as a keyword argument whose default is the truth:

    @mutation("amplitude eta rho h / 2", amplitude=lambda h, eta, rho: eta * rho * h / 2)
    def test_thm_sam_two_cycle(amplitude=dynamics.sam_cycle_amplitude): ...

pytest calls the test with its defaults; ``test_mutations.py`` calls it with the replacement and demands that an
assertion fails. What a test needs beside what it states is not asserted but required.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

FOLDER = Path(__file__).parent
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Mutation:
    """One false variant of a theorem and the test that must reject it."""

    test: Callable[..., None]
    statement: str
    replacements: dict[str, Any]

    @property
    def label(self) -> str:
        """The theorem's label on the page: ``test_thm_x_y`` tests ``thm-x-y``."""
        return label_of(self.test.__name__)


MUTATIONS: list[Mutation] = []


def mutation(statement: str, **replacements: Any) -> Callable[[Test], Test]:
    """Record what to replace in the decorated test, and in words what the replacement claims."""
    if not replacements:
        raise ValueError("a mutation must replace at least one argument of its test")

    def record(test: Test) -> Test:
        MUTATIONS.append(Mutation(test, statement, replacements))
        return test

    return record


def require(condition: object, what: str) -> None:
    """See that a test stands on the ground it needs: no part of what it states.

    Raises:
        RuntimeError: it does not.
    """
    if not condition:
        raise RuntimeError(f"the test's own ground is not there: {what}")


def label_of(test_name: str) -> str:
    """``test_thm_sam_two_cycle`` -> ``thm-sam-two-cycle``."""
    return test_name.removeprefix("test_").replace("_", "-")


def test_modules() -> list[ModuleType]:
    """Import every theorem test file once, under its dotted name, so that its mutations are recorded."""
    modules = []
    for path in sorted(FOLDER.glob("test_*.py")):
        if path.name == "test_mutations.py":
            continue
        name = f"tests.theorems.{path.stem}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        modules.append(sys.modules[name])
    return modules


test_modules.__test__ = False  # type: ignore[attr-defined]  # a helper, not a test
