"""Nothing that is set is ignored: what no one reads is refused, and what nobody set now is dropped."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from llqr_sam_ref.config import ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.train import cli
from llqr_sam_ref.train.config import (
    GROUPS,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    WatchConfig,
)
from llqr_sam_ref.train.methods import METHODS, llqr_config
from llqr_sam_ref.train.presets import PRESETS, configured

# Settings that nothing reads, and what the answer names.
UNREAD: list[tuple[type[Any], dict[str, Any], tuple[str, ...]]] = [
    (OptimizerConfig, {"rho": 0.1}, ("rho=0.1", "optimizer='sgd'", "'sam'", "'llqr-sam'")),
    (OptimizerConfig, {"alpha": 2.0}, ("alpha=2.0", "optimizer='m-sam'")),
    (OptimizerConfig, {"llqr": ("every=20",)}, ("llqr=('every=20',)", "'llqr'", "'llqr-published-sam'")),
    (OptimizerConfig, {"probe_size": 64}, ("probe_size=64", "'llqr-sampled'")),
    (OptimizerConfig, {"betas": (0.9, 0.99)}, ("betas=(0.9, 0.99)", "optimizer='adamw' or 'muon'")),
    (OptimizerConfig, {"sam_every": 2}, ("sam_every=2", "'sam'")),
    (OptimizerConfig, {"sam_start": 9}, ("sam_start=9", "'sam'")),
    (OptimizerConfig, {"norm": "dual"}, ("norm='dual'", "'sam'")),
    (OptimizerConfig, {"own_perturbation": True}, ("own_perturbation=True", "'sam'")),
    (OptimizerConfig, {"base": "adamw"}, ("base='adamw'", "optimizer='sgd'", "'sam'")),
    (OptimizerConfig, {"optimizer": "adamw", "momentum": 0.5}, ("momentum=0.5", "'sgd' or 'muon'")),
    (OptimizerConfig, {"optimizer": "muon", "nesterov": True}, ("nesterov=True", "optimizer='sgd'")),
    (OptimizerConfig, {"optimizer": "sam", "alpha": 2.0}, ("alpha=2.0", "optimizer='sam'", "'m-sam'")),
    (OptimizerConfig, {"optimizer": "asam", "fisher_eta": 0.2}, ("fisher_eta=0.2", "'fisher-sam'")),
    (OptimizerConfig, {"optimizer": "sam", "ascent_ema": 0.5}, ("ascent_ema=0.5", "'friendly-sam'")),
    (OptimizerConfig, {"optimizer": "llqr", "rho": 0.2}, ("rho=0.2", "optimizer='llqr'", "'llqr-sam'")),
    (
        OptimizerConfig,
        {"optimizer": "sam", "betas": (0.9, 0.99)},
        ("over base='sgd'", "base='adamw' or 'muon'"),
    ),
    (
        OptimizerConfig,
        {"optimizer": "llqr", "base": "adamw", "momentum": 0.5},
        ("momentum=0.5", "base='sgd'"),
    ),
    (ScheduleConfig, {"milestones": (3.0,)}, ("milestones=(3.0,)", "schedule='cosine'", "schedule='step'")),
    (ScheduleConfig, {"factor": 0.2}, ("factor=0.2", "schedule='step'")),
    (ScheduleConfig, {"schedule": "step", "final_lr": 0.01}, ("final_lr=0.01", "schedule='cosine'")),
    (ScheduleConfig, {"warmup_from": 0.1}, ("warmup_from=0.1", "warmup='0'", "another warmup")),
    (DataConfig, {"crop_padding": 2}, ("crop_padding=2", "augment='crop'")),
    (DataConfig, {"augment": ("crop",), "cutout_size": 2}, ("cutout_size=2", "augment='cutout'")),
    (DataConfig, {"cutout_probability": 0.2}, ("cutout_probability=0.2", "augment='cutout'")),
    (DataConfig, {"data": "text", "augment": ("flip",)}, ("augment=('flip',)", "data='text'", "'cifar10'")),
    (DataConfig, {"data": "modular", "label_noise": 0.2}, ("label_noise=0.2", "'digits'")),
    (DataConfig, {"data": "imagenet", "holdout": 9}, ("holdout=9", "data='imagenet'")),
    (DataConfig, {"data_path": "x"}, ("data_path='x'", "data='digits'", "'fashion-mnist'")),
    (DataConfig, {"data": "parallel", "download": True}, ("download=True", "'cifar10'")),
    (
        WatchConfig,
        {"sharpness_examples": 0, "sharpness_rho": 0.1},
        ("sharpness_rho=0.1", "sharpness_examples=0"),
    ),
]


@pytest.mark.parametrize(("group", "settings", "words"), UNREAD)
def test_what_nothing_reads_is_refused(
    group: type[Any], settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    """By the group itself and by ``replace``, with the setting, its value, why, and what would read it."""
    for make in (lambda: group(**settings), lambda: TrainConfig().replace(**settings)):
        with pytest.raises(ValueError) as caught:
            make()
        for word in ("is not read", "leave it out", *words):
            assert word in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_methods_accept_exactly_what_they_read(method: str) -> None:
    """Every setting of the optimizer at another value: accepted or refused as the method's and its base's rows say."""
    others: dict[str, Any] = {
        **{"lr": 0.01, "momentum": 0.5, "nesterov": True, "betas": (0.8, 0.9), "weight_decay": 0.1},
        **{"decay": "matrices", "clip_norm": 1.0, "rho": 0.1, "sam_every": 2, "sam_start": 3, "norm": "dual"},
        **{"ascent_ema": 0.5, "alpha": 2.0, "asam_eta": 0.1, "fisher_eta": 0.2, "own_perturbation": True},
        **{"llqr": ("every=3",), "probe_size": 64, "base": "muon"},
    }
    assert others.keys() == vars(OptimizerConfig()).keys() - {"optimizer"}
    reads = METHODS[method].reads | (frozenset() if METHODS[method].is_base else METHODS["sgd"].reads)
    for name, value in others.items():
        accepted = name in reads or (name == "base" and method == value)
        refused = pytest.raises(ValueError, match=f"{name}=.* is not read")
        with nullcontext() if accepted else refused:
            OptimizerConfig(**{"optimizer": method, name: value})


def test_values_out_of_range_come_first() -> None:
    with pytest.raises(ValueError, match=r"rho=-0.1 is not allowed; pass a finite number in \[0, inf\)\."):
        OptimizerConfig(rho=-0.1)
    with pytest.raises(ValueError, match=r"betas=\(0.9,\) is not a tuple of 2 values"):
        OptimizerConfig(optimizer="adamw", betas=(0.9,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="milestones=3.0 is not a tuple of any number of values"):
        ScheduleConfig(schedule="step", milestones=3.0)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"label_smoothing=1.0 is not allowed; pass a finite number in \[0, 1\)\."
    ):
        DataConfig(label_smoothing=1.0)


def test_a_default_value_says_nothing() -> None:
    assert OptimizerConfig(rho=0.05, alpha=1.0, betas=(0.9, 0.999), llqr=()) == OptimizerConfig()


# What nobody sets now: it stands in the configuration that is changed, or in a preset.


def test_changing_the_method_drops_what_only_the_other_read() -> None:
    config = TrainConfig().replace(
        optimizer="m-sam", base="adamw", rho=0.2, alpha=3.0, betas=(0.8, 0.9), lr=0.3
    )
    plain = config.replace(optimizer="sgd").optimizer
    assert plain == OptimizerConfig(lr=0.3)
    kept = config.replace(optimizer="sam").optimizer
    assert (kept.rho, kept.betas, kept.alpha) == (0.2, (0.8, 0.9), 1.0)
    assert config.replace(optimizer="adamw").optimizer == OptimizerConfig(
        optimizer="adamw", base="adamw", betas=(0.8, 0.9), lr=0.3
    )
    with pytest.raises(ValueError, match="rho=0.2 is not read by optimizer='sgd'"):
        config.replace(optimizer="sgd", rho=0.2)


def test_the_same_goes_for_schedules_data_and_augmentation() -> None:
    config = TrainConfig().replace(
        schedule="step", milestones=[3.0], warmup="5%", warmup_from=0.1, augment=["crop"], crop_padding=2
    )
    assert config.replace(schedule="cosine", warmup="0").schedule == ScheduleConfig()
    assert config.replace(augment=()).data == DataConfig()
    assert config.replace(data="modular").data == DataConfig(data="modular")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_a_method_what_it_reads(preset: str, method: str) -> None:
    config = configured(preset, method)
    for name, group in GROUPS.items():
        assert not group.unread(vars(getattr(config, name)))
    shared = PRESETS[preset].settings
    parts = (config.optimizer.base, *METHODS[method].kin, method)
    special = {name for part in parts for name in PRESETS[preset].methods.get(part, {})}
    usual = {name for part in parts for name in METHODS[part].settings}
    for name in (METHODS[method].reads & shared.keys()) - special - usual - {"base"}:
        assert getattr(config.optimizer, name) == shared[name]


def test_a_base_under_a_base_is_refused() -> None:
    assert configured("digits-mlp", "sgd", "sgd").optimizer.base == "sgd"
    with pytest.raises(ValueError, match="base='adamw' is not read by optimizer='sgd'"):
        configured("digits-mlp", "sgd", "adamw")


# LLQR's own settings.


def told(method: str, *pairs: str) -> LLQRConfig:
    config = llqr_config(method, OptimizerConfig(optimizer=method, llqr=pairs).llqr)
    assert config is not None
    return config


def test_settings_of_llqr_are_flat() -> None:
    assert told("llqr", "every=20", "damping=0.1") == LLQRConfig(every=20, solver=ClosedForm(damping=0.1))
    assert told("llqr-published", "steps=3") == LLQRConfig.published(steps=3)
    newton = told("llqr-published-sam", "divergence=newton")
    assert newton == LLQRConfig.published(divergence="newton")


def test_the_other_solver_is_taken_by_name_with_its_own_defaults() -> None:
    loop = told("llqr", "solver=inner-loop", "steps=25", "every=7")
    assert loop == LLQRConfig(solver=InnerLoop(steps=25), every=7)
    assert told("llqr", "solver=closed-form") == LLQRConfig()
    assert told("llqr-published", "solver=inner-loop", "ema=0.5") == LLQRConfig.published(ema=0.5)
    closed = told("llqr-reported", "solver=closed-form", "damping=0.2")
    assert closed == LLQRConfig.published(structure="ekfac", every=500).replace(
        solver=ClosedForm(damping=0.2)
    )


@pytest.mark.parametrize(
    ("method", "pairs", "words"),
    [
        ("llqr", ("steps=3",), ("steps=3", "solver=closed-form", "add solver=inner-loop")),
        (
            "llqr-published",
            ("basis_every=3",),
            ("basis_every=3", "solver=inner-loop", "add solver=closed-form"),
        ),
        ("llqr", ("solver=inner-loop", "damping_kind=relative"), ("damping_kind='relative'", "closed-form")),
        ("llqr", ("solver=cg",), ("solver='cg'", "'closed-form'")),
        ("llqr", ("evry=3",), ("'evry'", "'every'")),
        ("llqr", ("inner_steps=3",), ("inner_steps=3", "write steps=3")),
        ("llqr", ("damping=-1",), ("damping=-1", "(0, inf)")),
        ("llqr", ("every",), ("'every'", "key=value")),
    ],
)
def test_mistakes_in_llqrs_settings_are_found_at_once(
    method: str, pairs: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        OptimizerConfig(optimizer=method, llqr=pairs)
    for word in words:
        assert word in str(caught.value)


# The command line.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rho", "0.1"), ("rho=0.1", "'sgd'", "'sam'")),
        (("--rho", "0.05"), ("rho=0.05", "'sgd'", "'sam'")),  # the default, but it was said
        (("--rho=-1", "--optimizer=sam"), ("rho=-1.0", "[0, inf)")),
        (("--optimizer", "sam", "--alpha", "1"), ("alpha=1.0", "'m-sam'")),
        (("--optimizer", "sam", "--betas", "0.9", "0.99"), ("betas=(0.9, 0.99)", "base='adamw'")),
        (("--optimizer", "adamw", "--momentum", "0.9"), ("momentum=0.9", "'sgd'")),
        (("--optimizer", "muon", "--nesterov"), ("nesterov=True", "'sgd'")),
        (("--llqr", "every=20"), ("llqr=('every=20',)", "'llqr'")),
        (("--optimizer", "llqr", "--llqr", "every=20", "steps=3"), ("steps=3", "solver=inner-loop")),
        (("--factor", "0.1"), ("factor=0.1", "schedule='step'")),
        (("--crop-padding", "4"), ("crop_padding=4", "augment='crop'")),
        (("--data-path", "x"), ("data_path='x'", "'digits'")),
        (("--base", "sgd", "--optimizer", "adamw"), ("base='sgd'", "'adamw'", "'sam'")),
    ],
)
def test_options_that_nothing_reads_are_refused(
    options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--preset", "digits-mlp", *options, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for word in words:
        assert word in said


def test_what_only_the_preset_says_is_no_mistake_of_the_users(tmp_path: Path) -> None:
    """The preset crops with a padding of 1; without the crop nobody asks for it."""
    words = ["--preset", "digits-resnet", "--augment", "flip", "--epochs", "1", "--train-examples", "64"]
    words += [
        "--model-args",
        "width=4",
        "depths=1",
        "--sharpness-examples",
        "0",
        "--no-progress",
        "--no-tensorboard",
    ]
    assert cli.main(["train", *words, "--out", str(tmp_path)]) == 0
