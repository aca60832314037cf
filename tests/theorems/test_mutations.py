"""Every theorem test must be able to fail: its stated mutation is run and has to be caught."""

from __future__ import annotations

import pytest

from tests.theorems.catalogue import MUTATIONS, Mutation, test_modules


def _recorded() -> list[Mutation]:
    modules = {module.__name__ for module in test_modules()}
    return [m for m in MUTATIONS if m.test.__module__ in modules]


@pytest.mark.parametrize("mutated", _recorded(), ids=lambda m: m.label)
def test_the_mutation_is_caught(mutated: Mutation) -> None:
    with pytest.raises(AssertionError):
        mutated.test(**mutated.replacements)


def test_every_theorem_test_ships_a_mutation() -> None:
    mutated = {m.test.__name__ for m in _recorded()}
    tests = {name for module in test_modules() for name in vars(module) if name.startswith("test_")}
    assert tests - mutated == set()
