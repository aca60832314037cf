"""The reference lists every public name of the package, and a chapter uses it."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from tests import rendered

PACKAGE = "llqr_sam_ref.exact"
PAGE = "book/reference/exact"
MODULES = rendered.extension("api").public_modules(PACKAGE)


def _public(module_name: str) -> list[str]:
    """Functions and classes that this module defines for others."""
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    return [
        name
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and item.__module__ == module.__name__
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_the_reference_page(module: str) -> None:
    soup = rendered.html(PAGE)
    missing = [name for name in _public(module) if soup.find(id=f"{PACKAGE}.{module}.{name}") is None]
    assert not missing


def _functions(module_name: str) -> list[str]:
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    return [name for name in _public(module_name) if inspect.isfunction(getattr(module, name))]


def _waiting() -> set[str]:
    return set(re.findall(r"`(\w+\.\w+)`", rendered.source("book/roadmap")))


def _cited(name: str) -> bool:
    return any(re.search(rf"\b{name}\b", rendered.source(page)) for page in rendered.CHAPTERS)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_is_cited_by_a_chapter_or_waits_for_one(module: str) -> None:
    """The page of what comes says which functions wait, and for which chapter; it may not name others."""
    uncited = {f"{module}.{name}" for name in _functions(module) if not _cited(name)}
    waiting = {name for name in _waiting() if name.startswith(f"{module}.")}
    assert uncited == waiting
