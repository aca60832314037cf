"""Presets carry the papers' numbers, and each goes with every method."""

from __future__ import annotations

from typing import Any

import pytest

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.methods import METHODS, llqr_config
from llqr_sam_ref.train.models import MODELS
from llqr_sam_ref.train.presets import PRESETS, configured
from llqr_sam_ref.train.schedule import warmup_steps
from llqr_sam_ref.train.sources import SOURCES


def _llqr(config: TrainConfig) -> LLQRConfig | None:
    return llqr_config(config.optimizer.optimizer, config.optimizer.llqr)


@pytest.mark.parametrize("optimizer", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_with_every_method(preset: str, optimizer: str) -> None:
    config = configured(preset, optimizer)
    assert config.optimizer.optimizer == optimizer
    assert config.data.data in SOURCES
    assert config.model.model in MODELS
    settings = _llqr(config)
    assert (settings is not None) == optimizer.startswith("llqr")


# Settings of the published experiments, by preset: as the method "llqr-published-sam" has them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet18-cifar10": {
        **{"epochs": 200, "batch_size": 128, "lr": 0.05, "momentum": 0.9, "nesterov": False},
        **{"weight_decay": 5e-4, "decay": "all", "schedule": "cosine", "rho": 0.1, "label_smoothing": 0.0},
        **{
            "augment": ["crop", "flip", "cutout"],
            "crop_padding": 4,
            "cutout_size": 16,
            "cutout_probability": 0.5,
        },
        "probe_size": 128,
    },
    "wrn28x10-cifar100": {"epochs": 200, "lr": 0.05, "weight_decay": 5e-4, "model": "wide-resnet28-10"},
    "resnet18-cifar100-adamw": {
        "base": "adamw",
        "lr": 3e-3,
        "weight_decay": 1e-2,
        "decay": "matrices",
        "warmup": "5ep",
    },
    "vit-ti-cifar100": {
        **{
            "base": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.3,
            "decay": "matrices",
            "warmup": "5ep",
            "epochs": 300,
        },
        **{"batch_size": 256, "probe_size": 256, "label_smoothing": 0.1},
    },
    "resnet50-imagenet": {
        **{"epochs": 100, "batch_size": 256, "probe_size": 256, "lr": 0.1, "weight_decay": 1e-4},
        **{"schedule": "step", "milestones": [30.0, 70.0, 90.0], "factor": 0.1, "warmup": "5%"},
        **{"warmup_from": 1e-6, "rho": 0.075, "label_smoothing": 0.1},
    },
    "short-resnet50-imagenet": {"epochs": 50, "probe_size": 128, "milestones": [30.0, 70.0, 90.0]},
    "transformer-iwslt14": {
        **{"epochs": 133, "batch_size": 16384, "probe_size": 48, "lr": 5e-4, "schedule": "inverse-sqrt"},
        **{
            "warmup": "4000",
            "betas": [0.9, 0.98],
            "weight_decay": 1e-4,
            "decay": "all",
            "label_smoothing": 0.1,
        },
        **{"sam_start": 4000, "rho": 0.1, "base": "adamw"},
    },
    "gpt2small-wikitext103": {
        **{"epochs": 25, "batch_size": 512, "accumulate": 16, "probe_size": 32, "lr": 0.01, "final_lr": 1e-4},
        **{"warmup": "1ep", "weight_decay": 1e-4, "base": "sgd"},
    },
    "grokking": {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.0, "batch_size": 512, "probe_size": 512},
}
REFITS = {
    "resnet50-imagenet": 1500,
    "short-resnet50-imagenet": 1500,
    "gpt2small-wikitext103": 50,
    "grokking": 2500,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_numbers(preset: str) -> None:
    config = configured(preset, "llqr-published-sam")
    found = config.flat()
    assert {name: found[name] for name in PUBLISHED[preset]} == PUBLISHED[preset]
    ema = 0.925 if preset == "transformer-iwslt14" else 0.95
    expected = LLQRConfig.published(every=REFITS.get(preset, 1000), ema=ema)
    assert _llqr(config) == expected


def test_reported_numbers_differ_where_reports_differ() -> None:
    cifar = _llqr(configured("resnet18-cifar10", "llqr-reported"))
    imagenet = _llqr(configured("resnet50-imagenet", "llqr-reported"))
    assert cifar == LLQRConfig.published(structure="ekfac", steps=25, lr=5e-3, every=500)
    assert imagenet == LLQRConfig.published(structure="ekfac", steps=25, lr=5e-3, every=1500)


def test_imagenet_rises_for_a_twentieth_of_the_run() -> None:
    schedule = configured("resnet50-imagenet", "sgd").schedule
    assert warmup_steps(schedule.warmup, 5004, 100 * 5004) == 25020


def test_grokking_has_the_authors_number_of_steps() -> None:
    config = configured("grokking", "adamw")
    examples = round(0.6 * 97 * 97)
    assert config.schedule.epochs * (examples // config.schedule.batch_size) == 6050 - 550 + 550


def test_the_default_llqr_steps_over_momentum() -> None:
    """U acts on the momentum of sgd, whatever the preset's base is, unless another is asked for."""
    config = configured("vit-ti-cifar100", "llqr-sam").optimizer
    assert (config.base, config.nesterov) == ("sgd", True)
    assert configured("vit-ti-cifar100", "llqr-sam", "adamw").optimizer.base == "adamw"


def test_methods_keep_the_product_of_rate_and_decay() -> None:
    sgd, llqr = (configured("resnet18-cifar10", name).optimizer for name in ("sgd", "llqr"))
    assert sgd.lr * sgd.weight_decay == pytest.approx(llqr.lr * llqr.weight_decay, rel=1e-12)


def test_settings_of_llqr_lie_over_the_methods() -> None:
    config = configured("digits-mlp", "llqr-published").replace(llqr=("every=7", "structure=kronecker"))
    assert _llqr(config) == LLQRConfig.published(every=7, structure="kronecker")
    with pytest.raises(ValueError, match="did you mean 'every'"):
        _llqr(config.replace(llqr=("evry=7",)))


def test_which_methods_perturb() -> None:
    assert {name for name in METHODS if METHODS[name].perturbs} == {
        name for name in METHODS if name.endswith("sam")
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digit-mlp",), ("preset='digit-mlp'", "'digits-mlp'")),
        (("digits-mlp", "smd"), ("optimizer='smd'", "'sgd'")),
        (("digits-mlp", "sam", "adam"), ("base='adam'", "'adamw'")),
    ],
)
def test_unknown_names_get_the_nearest(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        configured(*arguments)
    for word in words:
        assert word in str(caught.value)
