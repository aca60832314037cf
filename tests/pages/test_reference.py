"""The reference lists every public name of the package, and a page says what each function is for."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import llqr_sam_ref
from llqr_sam_ref import optim
from tests import rendered

PAGES = {
    "llqr_sam_ref.exact": "book/reference/exact",
    "llqr_sam_ref.optim": "book/reference/optim",
    "llqr_sam_ref.nets": "book/reference/optim",
}
API = rendered.extension("api")
MODULES = {package: API.public_modules(package) for package in PAGES}
PUBLIC = [f"{package}.{module}" for package, modules in MODULES.items() for module in modules]
# What users of the optimizers call, beside the names at the top: to take curvature products, to say which
# likelihood labels have, to shape U, to write a metric, to read a report. Everything else in ``optim`` is private.
SURFACE = {
    "batchnorm",
    "budget",
    "curvature",
    "likelihood",
    "llqr",
    "metric",
    "preconditioner",
    "sam",
    "structures",
}


def test_the_surface_of_optim_is_what_users_call() -> None:
    assert set(MODULES["llqr_sam_ref.optim"]) == SURFACE
    assert API.public_members("llqr_sam_ref.optim.curvature") == ["Linearization", "observed"]
    assert API.public_members("llqr_sam_ref.optim.preconditioner") == ["BlockReport"]
    private = (
        {path.stem for path in Path(optim.__path__[0]).iterdir()} - SURFACE - {"__init__", "__pycache__"}
    )
    assert {name for name in private if not name.startswith("_")} == {
        "distributed",
        "probes",
        "step_rule",
    }


def test_names_at_the_top_are_public_where_they_live() -> None:
    for package in (llqr_sam_ref, optim):
        for name in set(package.__all__) - {"__version__"}:
            item = getattr(package, name)
            assert name in API.public_members(item.__module__), name


@pytest.mark.parametrize("module", [*PUBLIC, "llqr_sam_ref.config"])
def test_every_public_name_is_on_the_reference_page(module: str) -> None:
    soup = rendered.html(PAGES.get(module.rpartition(".")[0], "book/reference/optim"))
    missing = [name for name in API.public_members(module) if soup.find(id=f"{module}.{name}") is None]
    assert not missing


def _functions(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    return [name for name in API.public_members(module_name) if inspect.isfunction(getattr(module, name))]


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
    """The page tells what happens in a step; it names every public function, and none that is not public."""
    told = set(re.findall(r"`([a-z]\w*)`", rendered.source(PAGES[package])))
    functions = {name for module in MODULES[package] for name in _functions(f"{package}.{module}")}
    assert not functions - told
    known = {name for module in PUBLIC for name in API.public_members(module)} | set(
        MODULES["llqr_sam_ref.optim"]
    )
    sizes = set(importlib.import_module("llqr_sam_ref.nets").__all__)  # models by name, made from the classes
    assert not told - known - sizes - {"optim"}
