"""Small runs for the tests of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llqr_sam_ref.train import checkpoint
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.loop import Observer, Trainer
from llqr_sam_ref.train.methods import METHODS
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.ranks import RunRanks

QUIET: dict[str, Any] = {"progress": False, "tensorboard": False, "sharpness_examples": 0}
SMALL: dict[str, Any] = {
    **QUIET,
    "model_args": ("hidden=8", "activation=tanh"),
    "augment": ("crop",),  # no pixel stays dark: Gram matrices have no eigenvalue that occurs twice
    "crop_padding": 2,
    "train_examples": 96,
    "test_examples": 50,
    "batch_size": 32,
    "probe_size": 32,
    "epochs": 2,
    "precision": "float64",
}
# Shorter periods than a real run's, so that a few steps see several refits.
QUICK = {
    "llqr": ("every=2", "basis_every=4"),
    "llqr-sampled": ("every=2", "gram_every=4", "basis_every=4"),
    "llqr-published": ("every=2", "steps=3"),
}
QUICK["llqr-reported"] = QUICK["llqr-published"]


def small(optimizer: str = "sgd", base: str | None = None, **settings: Any) -> TrainConfig:
    """An MLP with 8 hidden units on 96 digits: three steps per epoch."""
    kin = next((name for name in (optimizer, *METHODS[optimizer].kin) if name in QUICK), None)
    quick = {} if kin is None else {"llqr": QUICK[kin]}
    usual = {**configured("digits-mlp", optimizer, base).flat(), **SMALL, **quick}
    return TrainConfig.fitting(usual).replace(**settings)


def read_by(method: str, **settings: Any) -> dict[str, Any]:
    """Those of the settings that a method reads."""
    return {name: value for name, value in settings.items() if name in METHODS[method].reads}


def trainer(config: TrainConfig, ranks: RunRanks | None = None, observer: Observer | None = None) -> Trainer:
    """Its trainer, before the first step."""
    here = RunRanks() if ranks is None else ranks
    dtype = torch.float64 if config.machine.precision == "float64" else torch.float32
    return Trainer(config, load_data(config.data, here.device, dtype), here, observer)


def weights(trainer: Trainer) -> list[Tensor]:
    """A copy of all parameters and buffers."""
    return [t.detach().clone() for t in trainer.model.state_dict().values()]


def steps(config: TrainConfig, count: int = 6) -> list[Tensor]:
    """Weights after some steps."""
    run = trainer(config)
    for _ in range(count):
        run.train_step()
    return weights(run)


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, by where it is."""
    content = checkpoint.load(folder, lambda text: (_ for _ in ()).throw(AssertionError(text)))
    assert content is not None
    found: dict[str, Tensor] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            found[path] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(item, f"{path}/{key}")
        elif isinstance(value, list):
            for key, item in enumerate(value):
                collect(item, f"{path}/{key}")

    collect({name: content[name] for name in ("model", "optimizer", "scaler")}, "")
    return found
