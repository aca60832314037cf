"""What was looked at: every statement of the book beside its test, and how many of the test's assertions can fail.

    python -m tests.theorems.statements            prints the counts and what has changed since
    python -m tests.theorems.statements --write    after looking at both: the present state is the one that was seen

The record, statements.json, holds a hash of every statement and of its test, the counts, and the assertions that no
mutation makes fail. Editing a statement asks for a look at its test, and the other way round.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tests import rendered
from tests.theorems.assertions import HELD, assertions, outcomes
from tests.theorems.catalogue import FOLDER, MUTATIONS, label_of, test_modules

FILE = FOLDER / "statements.json"
BOOK = FOLDER.parents[1] / "book"
USES = rendered.extension("uses")


def statements() -> dict[str, str]:
    """The text of every labeled statement on the book's pages, white space apart."""
    found = {}
    for page in sorted(BOOK.rglob("*.md")):
        for kind, title, content in USES.blocks(page.read_text(encoding="utf-8")):
            label = USES.LABEL.search(content)
            if kind != "proof" and label:
                found[label[1]] = " ".join(f"{kind} {title} {content}".split())
    return found


@cache
def tests() -> dict[str, Callable[..., None]]:
    """Every theorem's test by the label of its statement."""
    return {
        label_of(name): value
        for module in test_modules()
        for name, value in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(value) and value.__module__ == module.__name__
    }


def digest(text: str) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def meaning(test: Callable[..., None]) -> str:
    """A test's syntax tree with its mutations, without its docstring and layout."""
    (function,) = ast.parse(inspect.getsource(test)).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    return ast.dump(function)


def seen() -> dict[str, dict[str, str]]:
    """Hashes of statements and their tests, as they are."""
    of_tests = tests()
    return {
        label: {"statement": digest(text), "test": digest(meaning(of_tests[label]))}
        for label, text in sorted(statements().items())
        if label in of_tests
    }


def unreached(label: str, test: Callable[..., None]) -> tuple[list[str], list[str]]:
    """Run every mutation of a test to its end.

    Returns:
        The assertions that none makes fail; and what is wrong: mutations that nothing catches, assertions that are
        never asked, or that do not hold of the truth.
    """
    asked, truth = assertions(test), outcomes(test, {})
    wrong = [f"{label}: is never asked: {a.text}" for a in asked if a.number not in truth.seen]
    if truth.stopped or any(outcome != {HELD} for outcome in truth.seen.values()):
        wrong.append(f"{label}: does not hold as it stands ({truth.stopped or dict(truth.seen)})")
    failed: set[int] = set()
    for mutated in (m for m in MUTATIONS if m.test is test):
        here = outcomes(test, mutated.replacements).failed
        failed |= here
        if not here:
            wrong.append(f"{label}: no assertion fails where {mutated.statement}")
    return [f"{label}: {a.text}" for a in asked if a.number not in failed], wrong


def counts(idle: int) -> dict[str, int]:
    """How many results, mutations and assertions there are, and how many of these can fail."""
    total = sum(len(assertions(test)) for test in tests().values())
    return {
        "results": len(tests()),
        "mutations": len(MUTATIONS),
        "assertions": total,
        "can fail": total - idle,
    }


def load() -> dict[str, Any]:
    """The record."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Print, and write if asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="take what is there as seen")
    options = parser.parse_args()
    found = [unreached(label, test) for label, test in sorted(tests().items())]
    idle = [line for lines, _ in found for line in lines]
    print(*(line for _, lines in found for line in lines), sep="\n")
    now: dict[str, Any] = {"counts": counts(len(idle)), "seen": seen(), "cannot fail": idle}
    print(now["counts"])
    before = load() if FILE.exists() else {"seen": {}}
    for label, hashes in now["seen"].items():
        if before["seen"].get(label) != hashes:
            print("changed:", label)
    if options.write:
        FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
