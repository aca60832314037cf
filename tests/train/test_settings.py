"""Settings: one flat name space, checked values, lengths and rates that are what they say."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from llqr_sam_ref.train.config import FREE, GROUP_OF, ScheduleConfig, TrainConfig
from llqr_sam_ref.train.schedule import learning_rate, warmup_steps
from llqr_sam_ref.train.seeds import derived_seed, generator, uniforms
from llqr_sam_ref.train.settings import parse


def test_every_setting_has_a_name_of_its_own() -> None:
    default = TrainConfig()
    groups = [getattr(default, group.name) for group in dataclasses.fields(default)]
    count = sum(len(dataclasses.fields(group)) for group in groups)
    assert len(GROUP_OF) == count
    assert set(GROUP_OF) >= FREE


def test_a_configuration_survives_json() -> None:
    config = TrainConfig().replace(
        lr=0.3,
        model_args=("width=8",),
        milestones=(3.0, 4.5),
        clip_norm=1.0,
        data="text",
        data_path="x",
        schedule="step",
        optimizer="adamw",
        betas=(0.9, 0.98),
    )
    assert TrainConfig.from_flat(json.loads(json.dumps(config.flat()))) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1.0}, ("'learning_rate'", "'lr'")),
        ({"optimizer": "lqr"}, ("optimizer='lqr'", "'llqr'")),
        ({"base": "sdg"}, ("base='sdg'", "'sgd'")),
        ({"schedule": "cosin"}, ("'cosine'",)),
        ({"augment": ("flop",)}, ("augment='flop'", "'flip'")),
        ({"precision": "fp8"}, ("'fp16'",)),
        ({"lr": 0.0}, ("lr=0.0",)),
        ({"lr": math.nan}, ("lr=nan",)),
        ({"rho": -0.1}, ("rho=-0.1",)),
        ({"epochs": 0}, ("epochs=0",)),
        ({"batch_size": 2.5}, ("batch_size=2.5",)),
        ({"momentum": 1.0}, ("momentum=1.0",)),
        ({"betas": (0.9, 1.0)}, ("betas=1.0",)),
        ({"label_smoothing": 1.0}, ("label_smoothing=1.0",)),
        ({"label_noise": 1.5}, ("label_noise=1.5",)),
        ({"clip_norm": 0.0}, ("clip_norm=0.0",)),
        ({"milestones": (-1.0,)}, ("milestones=-1.0",)),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        TrainConfig().replace(**settings)
    for word in words:
        assert word in str(caught.value)


def test_pairs_are_literals_lists_or_words() -> None:
    pairs = ("width=16", "hidden=64,32", "norm=group", "tied=false", "limit=None", "rate=1e-3", "max-side=8")
    assert parse("model_args", pairs) == {
        "width": 16,
        "hidden": (64, 32),
        "norm": "group",
        "tied": False,
        "limit": None,
        "rate": 1e-3,
        "max_side": 8,
    }


@pytest.mark.parametrize("pairs", [("width",), ("=3",), ("a b=3",), ("width=1", "width=2")])
def test_bad_pairs_are_refused(pairs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="model_args"):
        parse("model_args", pairs)


# The schedule.


@pytest.mark.parametrize(
    ("warmup", "steps"), [("7", 7), ("2ep", 20), ("1.5 epochs", 15), ("5%", 50), ("9999", 1000)]
)
def test_length_of_a_warmup(warmup: str, steps: int) -> None:
    assert warmup_steps(warmup, 10, 1000) == steps


@pytest.mark.parametrize("warmup", ["", "five", "1.5", "-3", "3 weeks"])
def test_other_lengths_are_refused(warmup: str) -> None:
    with pytest.raises(ValueError, match="warmup="):
        warmup_steps(warmup, 10, 1000)


def rates(lr: float = 0.5, **settings: Any) -> list[float]:
    config = ScheduleConfig(epochs=4, **settings)
    return [learning_rate(config, lr, step, 10) for step in range(40)]


def test_cosine_is_half_a_wave() -> None:
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * t / 40)) / 2 for t in range(40)]
    assert rates(final_lr=0.1) == pytest.approx(expected, rel=1e-12)
    assert all(rate > 0 for rate in rates())


def test_warmup_is_a_line_that_arrives() -> None:
    found = rates(warmup="1ep", warmup_from=0.1)
    assert found[:10] == pytest.approx([0.1 + 0.4 * (t + 1) / 10 for t in range(10)], rel=1e-12)
    assert found[9] == found[10] == 0.5


def test_steps_fall_at_their_epochs() -> None:
    found = rates(schedule="step", milestones=(1.0, 2.5))
    assert found == pytest.approx([0.5] * 10 + [0.05] * 15 + [0.005] * 15, rel=1e-12)


def test_inverse_root_of_the_step() -> None:
    found = rates(schedule="inverse-sqrt", warmup="4")
    assert found[3] == 0.5
    assert found[15] == pytest.approx(0.25, rel=1e-12)


def test_constant_is_constant() -> None:
    assert rates(schedule="constant") == [0.5] * 40


# Random numbers.


def test_random_numbers_depend_on_use_and_place() -> None:
    places = [
        (0, "order", 1),
        (0, "order", 2),
        (1, "order", 1),
        (0, "probe", 1),
        (0, "order", 1, 1),
        (0, "order", 11),
    ]
    assert len({derived_seed(seed, use, *counters) for seed, use, *counters in places}) == len(places)  # type: ignore[arg-type]
    torch.testing.assert_close(uniforms(3, 2, 0, "order", 1), uniforms(3, 2, 0, "order", 1), rtol=0, atol=0)
    first = torch.randint(10**9, (4,), generator=generator(0, "order", 1))
    assert not torch.equal(first, torch.randint(10**9, (4,), generator=generator(0, "order", 2)))


def test_random_numbers_stay_the_same_in_every_release() -> None:
    """A run that was begun with an older release goes on with the same data order."""
    assert derived_seed(0, "order", 3) == 228291028133782092
