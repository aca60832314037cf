"""The two presets are what the book says they are."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest

from llqr_sam_ref.config import CHOICES, LLQRConfig


@pytest.mark.parametrize(
    ("divergence", "reduction", "ema"), [("fisher", "sum", 0.95), ("newton", "mean", 0.9)]
)
def test_published_is_what_the_authors_code_does(divergence: str, reduction: str, ema: float) -> None:
    theirs: dict[str, Any] = {
        "structure": "diagonal",
        "every": 1000,
        "inner_steps": 50,
        "inner_lr": 1e-3,
        "inner_momentum": 0.9,
        "clip": 5.0,
        "ema": ema,
        "damping": 0.0,
        "reduction": reduction,
        "solver": "inner-loop",
        "probes": 1,
        "probe_vector": "gradient",
        "acts_on": "gradient",
        "step_rule": "none",
        "positive": False,
        "max_side": None,
        "warm_start": True,
    }
    config = asdict(LLQRConfig.published(divergence=divergence))
    assert {name: config[name] for name in theirs} == theirs
    assert LLQRConfig.published(divergence=divergence, every=7, ema=0.5).every == 7


def test_the_default_is_free_of_scale_and_positive() -> None:
    config = LLQRConfig()
    assert config.solver == "closed-form"
    assert config.probe_vector == "sampled"
    assert config.positive
    assert (config.acts_on, config.step_rule, config.damping_kind) == ("update", "rms", "relative")
    assert config.max_side == 1024


def test_every_choice_is_a_field_and_legal_somewhere() -> None:
    assert set(CHOICES) <= {field.name for field in fields(LLQRConfig)}
    for name, allowed in CHOICES.items():
        for value in allowed:
            assert getattr(LLQRConfig.published(**{name: value} | _company(value)), name) == value


def _company(value: str) -> dict[str, Any]:
    """What a choice needs beside it to be legal."""
    closed: dict[str, Any] = {"solver": "closed-form", "positive": True, "damping": 0.1}
    return {"closed-form": {"positive": True, "damping": 0.1}, "relative": closed}.get(value, {})
