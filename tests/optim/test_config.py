"""The two presets are what the book says they are."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, fields
from typing import Any

import pytest

from llqr_sam_ref.config import CHOICES, ClosedForm, InnerLoop, LLQRConfig


@pytest.mark.parametrize(
    ("divergence", "reduction", "ema"), [("fisher", "sum", 0.95), ("newton", "mean", 0.9)]
)
def test_published_is_what_the_authors_code_does(divergence: str, reduction: str, ema: float) -> None:
    theirs: dict[str, Any] = {
        "structure": "diagonal",
        "every": 1000,
        "steps": 50,
        "lr": 1e-3,
        "momentum": 0.9,
        "clip": 5.0,
        "ema": ema,
        "damping": 0.0,
        "reduction": reduction,
        "probes": 1,
        "probe_vector": "gradient",
        "acts_on": "gradient",
        "step_rule": "none",
        "positive": False,
        "max_side": None,
        "warm_start": True,
    }
    published = LLQRConfig.published(divergence=divergence)
    assert isinstance(published.solver, InnerLoop)
    config = asdict(published) | asdict(published.solver)
    assert {name: config[name] for name in theirs} == theirs
    assert LLQRConfig.published(divergence=divergence, every=7, ema=0.5).every == 7


def test_the_default_is_free_of_scale_and_positive() -> None:
    config = LLQRConfig()
    assert isinstance(config.solver, ClosedForm)
    assert config.probe_vector == "sampled"
    assert (config.acts_on, config.step_rule, config.solver.damping_kind) == ("update", "rms", "relative")
    assert config.max_side == 1024


def test_every_choice_is_a_field_and_legal_somewhere() -> None:
    for name, allowed in CHOICES.items():
        kinds: list[Any] = [
            kind for kind in (LLQRConfig, ClosedForm, InnerLoop) if name in {f.name for f in fields(kind)}
        ]
        assert len(kinds) == 1
        for value in allowed:
            assert getattr(kinds[0](**{name: value}), name) == value


def test_a_setting_has_one_place() -> None:
    outer, closed, inner = ({f.name for f in fields(kind)} for kind in (LLQRConfig, ClosedForm, InnerLoop))
    assert not outer & (closed | inner)
    assert closed & inner == {"damping"}


def test_a_copy_changes_what_it_is_told_wherever_that_stands() -> None:
    config = LLQRConfig(every=3).replace(damping=0.5, probes=2)
    assert config == LLQRConfig(every=3, probes=2, solver=ClosedForm(damping=0.5))
    other = config.replace(solver=InnerLoop(), steps=7)
    assert other == LLQRConfig(every=3, probes=2, solver=InnerLoop(steps=7))
    assert config.replace() == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
