"""The update rule stands in two docstrings, the pure functions' and the optimizer's: the same lines, and true ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llqr_sam_ref import LLQR, SAM, LLQRConfig
from llqr_sam_ref.exact import llqr
from llqr_sam_ref.exact._arrays import Array
from tests.optim._training import backward

Names = dict[str, Array]
GAMMA, ETA, BETA, WD, RHO = np.array([3.0, 0.5, 2.0]), 0.1, 0.9, 0.3, 0.2
W, M0 = np.array([1.0, -2.0, 0.5]), np.array([0.4, 0.1, -0.3])
BASE = llqr.HeavyBall(BETA, nesterov=True, wd=WD)


def rule_of(docstring: str | None) -> list[str]:
    """The lines of the indented formula block that begins with the refit."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    first = next(i for i, line in enumerate(lines) if "if a refit is due:" in line)
    block = lines[first : lines.index("", first)]
    assert all(line.startswith("    ") for line in block)  # otherwise the page runs them together
    return [" ".join(line.split()) for line in block]


def test_both_docstrings_show_the_same_lines() -> None:
    assert rule_of(llqr.__doc__) == rule_of(LLQR.__doc__)


def gradient(w: Array) -> Array:
    return GAMMA * w


def rms(S: Array, v: Array) -> Array:
    length: Array = S * np.sqrt(S.size) / np.linalg.norm(S)
    return length


def base(v: Array, m: Array) -> Array:
    m = BETA * m + v
    return v + BETA * m


# Every line of the rule, word for word, and what it says of the names in it: changed names only.
# "m" is the base's momentum, "refitted" what a refit at w makes of U.
LINES: dict[str, Callable[[Names], Names]] = {
    "if a refit is due: U <- refit at w, or by g ClosedForm, or InnerLoop and its average": lambda n: {
        "U": n["refitted"]
    },
    "with SAM around it: g <- gradient at w + rho U g/|U g|": lambda n: {
        "g": gradient(n["w"] + RHO * (n["U"] * n["g"]) / np.linalg.norm(n["U"] * n["g"]))
    },
    'acts_on "update": M <- base(g), S <- rule(U M, M), w <- w - eta (S + wd w)': lambda n: {
        "w": n["w"] - ETA * (rms(n["U"] * base(n["g"], n["m"]), base(n["g"], n["m"])) + WD * n["w"])
    },
    'acts_on "gradient": S <- rule(U g, g), w <- w - eta base(S + wd w)': lambda n: {
        "w": n["w"] - ETA * base(rms(n["U"] * n["g"], n["g"]) + WD * n["w"], n["m"])
    },
}


def read(names: Names, acts_on: str, sam: bool, due: bool) -> Names:
    """The names after the lines that apply, read one after the other."""
    for line, action in LINES.items():
        applies = {"if a": due, "with": sam}.get(line[:4], f'acts_on "{acts_on}"' in line)
        names = names | (action(names) if applies else {})
    return names


def test_the_lines_are_the_ones_that_are_checked_here() -> None:
    assert rule_of(llqr.__doc__) == list(LINES)


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("due", [False, True])
def test_a_training_step_is_its_lines_read_one_after_the_other(acts_on: str, sam: bool, due: bool) -> None:
    config = LLQRConfig(structure="diagonal", acts_on=acts_on, every=2)
    state = replace(llqr.start(config, W, [[(3,)]]), m=M0, steps=0 if due else 1, last_refit=-1 if due else 0)

    def learn(now: llqr.State) -> llqr.State:
        halved: list[dict[str, Any]] = [{"d": now.U.blocks[0].arrays["d"] / 2}]
        return replace(now, U=now.U.with_arrays(halved))

    after = llqr.training_step(config, state, gradient, ETA, BASE, rho=RHO if sam else 0.0, learn=learn)
    names = {"w": W, "g": gradient(W), "U": np.ones(3), "m": M0, "refitted": np.ones(3) / 2}
    said = read(names, acts_on, sam, due)
    np.testing.assert_allclose(after.w, said["w"], rtol=1e-14)
    np.testing.assert_array_equal(after.U.to_dense(), np.diag(said["U"]))
    assert np.abs(after.w - W).max() > 0.01


@pytest.mark.parametrize("acts_on", ["update", "gradient"])
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("due", [False, True])
def test_the_optimizer_takes_the_same_step(acts_on: str, sam: bool, due: bool) -> None:
    """The third step, with a refit, and the second, without: on L = sum gamma_j w_j^2/2, as a regression."""
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = torch.from_numpy(W[None].copy())
    inputs = torch.from_numpy(np.diag(np.sqrt(3 * GAMMA / 2)))  # the loss is a mean over three examples
    targets = torch.zeros(3, 1, dtype=torch.float64)
    loss_fn = nn.MSELoss()
    learner = LLQR(
        torch.optim.SGD(model.parameters(), lr=ETA, momentum=BETA, nesterov=True, weight_decay=WD),
        model,
        loss_fn,
        LLQRConfig(structure="diagonal", acts_on=acts_on, every=2, probes=3),
        probe=lambda: (inputs, targets),
    )
    opt = SAM(learner, rho=RHO) if sam else learner

    def closure() -> torch.Tensor:
        opt.zero_grad()
        return backward(loss_fn(model(inputs), targets))

    def now() -> Names:
        w = model.weight.detach().numpy().ravel().copy()
        m = opt.state[model.weight]["momentum_buffer"].numpy().ravel().copy()
        return {"w": w, "g": gradient(w), "U": learner.own[model.weight]["d"].numpy().ravel().copy(), "m": m}

    for _ in range(2 if due else 1):
        opt.step(closure)
    before = now()
    assert learner.refit_due == due
    opt.step(closure)
    after = now()
    said = read(before | {"refitted": after["U"]}, acts_on, sam, due)
    np.testing.assert_allclose(after["w"], said["w"], rtol=1e-12)
    np.testing.assert_array_equal(after["U"], said["U"])
    assert (np.abs(after["U"] - before["U"]).max() > 1e-3) == due
    assert np.ptp(after["U"]) > 0.1
