"""The reference lists every public name of the package, and a page says what each function is for."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from tests import rendered

PAGES = {
    "llqr_sam_ref.exact": "book/reference/exact",
    "llqr_sam_ref.optim": "book/reference/optim",
    "llqr_sam_ref.optim.structures": "book/reference/optim",
    "llqr_sam_ref.nets": "book/reference/optim",
}
MODULES = {package: rendered.extension("api").public_modules(package) for package in PAGES}
PUBLIC = [f"{package}.{module}" for package, modules in MODULES.items() for module in modules]


def _public(module_name: str) -> list[str]:
    """Functions and classes that this module defines for others."""
    module = importlib.import_module(module_name)
    return [
        name
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and item.__module__ == module.__name__
    ]


@pytest.mark.parametrize("module", [*PUBLIC, "llqr_sam_ref.config"])
def test_every_public_name_is_on_the_reference_page(module: str) -> None:
    soup = rendered.html(PAGES.get(module.rpartition(".")[0], "book/reference/optim"))
    missing = [name for name in _public(module) if soup.find(id=f"{module}.{name}") is None]
    assert not missing


def _functions(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    return [name for name in _public(module_name) if inspect.isfunction(getattr(module, name))]


@pytest.mark.parametrize("module", MODULES["llqr_sam_ref.exact"])
def test_every_public_function_is_cited_by_a_chapter_or_explained_on_the_reference_page(module: str) -> None:
    pages = [rendered.source(page) for page in (*rendered.CHAPTERS, PAGES["llqr_sam_ref.exact"])]
    functions = _functions(f"llqr_sam_ref.exact.{module}")
    assert [name for name in functions if not any(re.search(rf"\b{name}\b", page) for page in pages)] == []


def test_the_reference_page_explains_nothing_that_is_not_there() -> None:
    told = set(re.findall(r"`([a-z]\w*)`", rendered.source(PAGES["llqr_sam_ref.exact"])))
    modules = MODULES["llqr_sam_ref.exact"]
    functions = {name for module in modules for name in _functions(f"llqr_sam_ref.exact.{module}")}
    assert told - functions <= {"exact"}


@pytest.mark.parametrize("package", [package for package in PAGES if package != "llqr_sam_ref.exact"])
def test_every_public_function_for_training_is_explained_in_its_place(package: str) -> None:
    """The page tells what happens in a step, function by function; it names none that is not there."""
    told = set(re.findall(r"`([a-z]\w*)`", rendered.source(PAGES[package])))
    functions = {name for module in MODULES[package] for name in _functions(f"{package}.{module}")}
    assert not functions - told
    known = {name for module in PUBLIC for name in vars(importlib.import_module(module))}
    assert not told - known - {"optim"}
