"""Testing what a checkpoint holds, apart from training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train import checkpoint
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.earlier import as_now
from llqr_sam_ref.train.loop import Trainer
from llqr_sam_ref.train.ranks import RunRanks, device_of


def evaluate(run: str | Path, data_path: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Test a run's newest readable checkpoint.

    Args:
        run: the run's folder.
        data_path: where the data lies now; None for where the run had it.
        device: on which device.

    Returns:
        {"loss", "accuracy", "step"}.

    Raises:
        UserError: there is no checkpoint, or it does not fit the data.
    """
    saved = checkpoint.load(Path(run), print)
    if saved is None:
        raise UserError(f"{run} has no checkpoint; pass the folder of a run.")
    config = as_now(saved["config"], run, saved.get("version", 1))
    if data_path is not None:
        config = config.replace(data_path=data_path)
    machine = dataclasses.replace(config.machine, parallel="ddp", compile=False)
    config = dataclasses.replace(config, machine=machine, optimizer=type(config.optimizer)())
    here = RunRanks(device=device_of(device))
    dtype = torch.float64 if machine.precision == "float64" else torch.float32
    trainer = Trainer(config, load_data(config.data, here.device, dtype, machine.workers), here)
    try:
        trainer.model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint in {run} does not fit the data or the code: {error}") from error
    return {**trainer.evaluate(), "step": saved["step"]}
