"""The page on other people's loops shows every recipe that `make clients` runs; ranges and pins are kept together."""

from __future__ import annotations

import re

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import rendered

CLIENTS = rendered.ROOT / "tests" / "clients"
RECIPES = {path for path in (CLIENTS / "recipes").glob("*.py") if path.stem != "__init__"}
PAGE = "book/scale/clients"
EXTRA = [
    Requirement(line)
    for line in tomllib.loads((rendered.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]["clients"]
]
# What runs the tests, and what the package itself depends on: not clients.
TOOLS = {"numpy", "jaxtyping", "setuptools", "pytest", "pytest-xdist"}
PULLED_IN = "# What these pull in."


def _lines(name: str) -> list[Requirement]:
    text = (rendered.ROOT / name).read_text(encoding="utf-8")
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def _pins(name: str) -> dict[str, str]:
    """Versions by name; a name that the other file pins has none."""
    found = {}
    for line in _lines(name):
        assert all(pin.operator == "==" for pin in line.specifier), f"{name}: {line} is no pin"
        found[str(canonicalize_name(line.name))] = "".join(pin.version for pin in line.specifier)
    return found


def test_the_page_is_in_the_book() -> None:
    assert PAGE in rendered.PAGES


def test_the_page_shows_every_recipe() -> None:
    included = re.findall(r"^```\{literalinclude\} (\S+)$", rendered.source(PAGE), re.MULTILINE)
    files = [(rendered.ROOT / PAGE).parent.joinpath(path).resolve() for path in included]
    assert len(files) == len(set(files))
    assert set(files) == RECIPES


def test_every_recipe_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in CLIENTS.glob("test_*.py"))
    imports = re.findall(r"^from tests\.clients\.recipes(?:\.(\w+))? import (.+)$", tests, re.MULTILINE)
    run = {name.strip() for module, names in imports for name in ([module] if module else names.split(","))}
    assert run == {path.stem for path in RECIPES}


def test_the_extra_has_a_range_for_every_client_that_is_pinned() -> None:
    text = (rendered.ROOT / "requirements-clients.txt").read_text(encoding="utf-8")
    named, _, pulled = text.partition(PULLED_IN)
    assert pulled
    installed = {canonicalize_name(Requirement(x).name) for x in named.splitlines() if x and x[0] != "#"}
    assert {canonicalize_name(client.name) for client in EXTRA} == installed - TOOLS


def test_the_pins_lie_in_the_ranges_and_have_one_place_each() -> None:
    theirs, ours = _pins("requirements-clients.txt"), _pins("requirements.txt")
    for name, version in theirs.items():
        assert bool(version) != (name in ours), f"{name} belongs into exactly one of the files"
    for client in EXTRA:
        name = canonicalize_name(client.name)
        assert client.specifier.contains(theirs[name] or ours[name])


def test_what_runs_everything_runs_the_clients() -> None:
    makefile = (rendered.ROOT / "Makefile").read_text(encoding="utf-8")
    stages = re.findall(r'^stage "(make \w+)" \1$', (rendered.ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert stages[-2:] == ["make test", "make clients"]
    assert (
        "pip install --disable-pip-version-check -q -c requirements.txt -r requirements-clients.txt"
        in makefile
    )
    assert "pytest tests/clients" in makefile
