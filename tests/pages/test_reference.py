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


def _awaiting() -> set[str]:
    """Modules that the page of what comes names as waiting for their chapter."""
    return set(re.findall(r"`llqr_sam_ref\.exact\.(\w+)`", rendered.source("book/roadmap")))


def _uncited(module: str) -> list[str]:
    text = "\n".join(rendered.source(page) for page in rendered.CHAPTERS)
    return [name for name in _public(module) if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("module", [module for module in MODULES if module not in _awaiting()])
def test_every_public_name_is_cited_by_a_chapter(module: str) -> None:
    uncited = _uncited(module)
    assert not uncited, f"no chapter mentions {uncited} of {module}"


@pytest.mark.parametrize("module", sorted(_awaiting()))
def test_a_module_that_waits_for_its_chapter_exists_and_still_waits(module: str) -> None:
    assert module in MODULES
    assert _uncited(module), f"chapters cite all of {module}: take it off the page of what comes"
