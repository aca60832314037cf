"""The update rule stands in two docstrings, the pure functions' and the optimizer's: the same lines, and true ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llqr_sam_ref import LLQR, LLQRConfig
from llqr_sam_ref.exact import llqr
from llqr_sam_ref.exact._arrays import Array

GAMMA, ETA, BETA, WD, RHO = np.array([3.0, 0.5, 2.0]), 0.1, 0.9, 0.3, 0.2
W, M0 = np.array([1.0, -2.0, 0.5]), np.array([0.4, 0.1, -0.3])
BASE = llqr.HeavyBall(BETA, nesterov=True, wd=WD)


def rule_of(docstring: str | None) -> list[str]:
    """The lines of the formula block that begins with the refit."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    first = next(i for i, line in enumerate(lines) if "if a refit is due:" in line)
    block = lines[first : lines.index("", first)]
    return [" ".join(line.split()) for line in block]


def test_both_docstrings_show_the_same_lines() -> None:
    assert rule_of(llqr.__doc__) == rule_of(LLQR.__doc__)


def gradient(w: Array) -> Array:
    return GAMMA * w


def rms(S: Array, v: Array) -> Array:
    length: Array = S * np.sqrt(S.size) / np.linalg.norm(S)
    return length


def base(v: Array) -> Array:
    m = BETA * M0 + v
    return v + BETA * m


def refit(U: Array) -> Array:
    return U / 2


# Every line of the rule, word for word, and what it says as a function of (w, g, U): changed names only.
LINES: dict[str, Callable[[Array, Array, Array], dict[str, Array]]] = {
    "if a refit is due: U <- refit at w ClosedForm, or InnerLoop and its average": lambda w, g, U: {
        "U": refit(U)
    },
    "with SAM around it: g <- gradient at w + rho U g/|U g|": lambda w, g, U: {
        "g": gradient(w + RHO * (U * g) / np.linalg.norm(U * g))
    },
    'acts_on "update": M <- base(g), S <- rule(U M, M), w <- w - eta (S + wd w)': lambda w, g, U: {
        "w": w - ETA * (rms(U * base(g), base(g)) + WD * w)
    },
    'acts_on "gradient": S <- rule(U g, g), w <- w - eta base(S + wd w)': lambda w, g, U: {
        "w": w - ETA * base(rms(U * g, g) + WD * w)
    },
}


def test_the_lines_are_the_ones_that_are_checked_here() -> None:
    assert rule_of(llqr.__doc__) == list(LINES)


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("due", [False, True])
def test_a_training_step_is_its_lines_read_one_after_the_other(acts_on: str, sam: bool, due: bool) -> None:
    config = LLQRConfig(structure="diagonal", acts_on=acts_on, every=2)
    state = replace(llqr.start(config, W, [[(3,)]]), m=M0, steps=0 if due else 1, last_refit=-1 if due else 0)

    def learn(now: llqr.State) -> llqr.State:
        halved: list[dict[str, Any]] = [{"d": refit(now.U.blocks[0].arrays["d"])}]
        return replace(now, U=now.U.with_arrays(halved))

    after = llqr.training_step(config, state, gradient, ETA, BASE, rho=RHO if sam else 0.0, learn=learn)
    said = {"w": W, "g": gradient(W), "U": np.ones(3)}
    for line, action in LINES.items():
        applies = {"if a": due, "with": sam}.get(line[:4], f'acts_on "{acts_on}"' in line)
        said |= action(said["w"], said["g"], said["U"]) if applies else {}
    np.testing.assert_allclose(after.w, said["w"], rtol=1e-14)
    np.testing.assert_array_equal(after.U.to_dense(), np.diag(said["U"]))
    assert np.abs(after.w - W).max() > 0.01
