"""The live figures, as tests reach them: book/figures/bundle.py and its node runner."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

FOLDER = ROOT / "book" / "figures"
SAMPLER = (Path(__file__).parent / "sampler.js").read_text(encoding="utf-8")


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("bundle", FOLDER / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bundle"] = module
    spec.loader.exec_module(module)
    return module


bundle: Any = _load()
KINDS: tuple[str, ...] = bundle.KINDS


def in_node(program: str, kinds: tuple[str, ...] = KINDS) -> Any:
    """Run a program after the served script; ``kinds`` are its figures, ``print`` returns a value."""
    return bundle.run_node(bundle.bundle(kinds) + bundle.PRINT + SAMPLER + program)


def call(calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """What the page's functions return for a list of (name, arguments)."""
    found: list[Any] = in_node(
        "const owner = name => Object.values(liveFigures).find(module => name in module);\n"
        f"print({json.dumps(calls)}.map(([name, given]) => owner(name)[name](given)));"
    )
    return found


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Every number of a result under its path, as in {"path.3.0": 1.5}."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{name}.{key}" if name else key))
    return flat
