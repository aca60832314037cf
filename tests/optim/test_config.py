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
    assert (config.probe_vector, config.every, config.probes) == ("step", 1, 1)
    kinds = config.acts_on, config.step_rule, config.solver.damping_kind
    assert kinds == ("update", "rms-per-tensor", "per-tensor")
    assert (config.max_side, config.wide) == (128, "blocks")


def test_what_is_not_said_of_the_probes_follows_from_what_is() -> None:
    batch = "sampled", 10, 8
    for config, wanted in (
        (LLQRConfig(probe_vector="gradient"), ("gradient", 10, 8)),
        (LLQRConfig(probes=4), ("sampled", 10, 4)),
        (LLQRConfig(every=3), ("step", 3, 1)),
        (LLQRConfig(solver=InnerLoop()), batch),
        (LLQRConfig(reduction="sum"), batch),
        (LLQRConfig(every=3).replace(damping=0.5), ("step", 3, 1)),
        (LLQRConfig(every=3).replace(probes=4), ("sampled", 10, 4)),
        (LLQRConfig(every=3).replace(probes=4, every=5), ("sampled", 5, 4)),
        (LLQRConfig().replace(solver=InnerLoop()), batch),
        (LLQRConfig().replace(probe_vector="sampled"), batch),
        (LLQRConfig.sampled(), batch),
        (LLQRConfig.sampled(every=7).replace(damping=0.1), ("sampled", 7, 8)),
        (LLQRConfig.sampled().replace(probe_vector="step"), ("step", 1, 1)),
        (LLQRConfig.published().replace(steps=3), ("gradient", 1000, 1)),
    ):
        assert (config.probe_vector, config.every, config.probes) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 2}, "probes=2 is not read with probe_vector='step'"),
        ({"solver": InnerLoop()}, "no batch for the products of an InnerLoop"),
        ({"reduction": "sum"}, "reduction='sum' needs the number of terms"),
    ],
)
def test_what_a_step_s_gradient_cannot_tell_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLQRConfig(probe_vector="step", **settings)


def test_probe_batches_now_and_then_are_one_word_away() -> None:
    solver = LLQRConfig.sampled().solver
    assert isinstance(solver, ClosedForm)
    per_refit = (1 - 1 / solver.curvature_memory) ** 10, (1 - 1 / solver.basis_memory) ** 50
    assert per_refit == pytest.approx((0.95, 0.8), rel=1e-12)


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
    config = LLQRConfig(every=3, probes=3).replace(damping=0.5, probes=2)
    assert config == LLQRConfig(every=3, probes=2, solver=ClosedForm(damping=0.5))
    other = config.replace(solver=InnerLoop(), steps=7)
    assert other == LLQRConfig(every=3, probes=2, solver=InnerLoop(steps=7))
    assert config.replace() == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
