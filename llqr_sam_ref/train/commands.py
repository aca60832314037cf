"""The options of every command, as tyro reads them: fields are flags, docstrings are their help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro
from tyro.conf import Positional

from llqr_sam_ref.train.config import TrainConfig

Command = TypeVar("Command")


@dataclass(frozen=True)
class TrainCommand:
    """Train a preset, or go on training where the folder's checkpoint stands.

    The last line of the output is `accuracy=... record=PATH`. The folder gets checkpoints, scalars for TensorBoard,
    curves.png and record.json. Ctrl-C finishes the step and leaves a checkpoint; the same command goes on from it,
    bit for bit.

    Args:
        out: the run's folder.
        preset: `presets` lists them; settings below override it.
        resume: insist on a checkpoint in the folder; without a preset, take the settings from it.
        config: what the run is told.
    """

    out: str
    preset: str | None = None
    resume: bool = False
    config: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class EvaluateCommand:
    """Test the newest checkpoint of a run; the last line is `accuracy=... loss=... step=...`.

    Args:
        run: the run's folder.
        data_path: where the data lies now; None for where the run had it.
        device: auto, cpu, cuda and the like.
    """

    run: Positional[str]
    data_path: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class PresetsCommand:
    """List presets, or show the settings of one.

    Args:
        name: of one preset.
        optimizer: show its settings for this method.
        optimizers: list the methods.
        models: list the models.
    """

    name: Positional[str | None] = None
    optimizer: str | None = None
    optimizers: bool = False
    models: bool = False


@dataclass(frozen=True)
class CompareCommand:
    """Put finished runs beside each other; runs that differ in the seed only are one line with a spread.

    Args:
        runs: folders or record files.
        out: where the picture goes.
        target: accuracy whose time is compared; None for the lowest of the groups' mean accuracies.
    """

    runs: Positional[tuple[str, ...]]
    out: str = "compare.png"
    target: float | None = None


def parsed(kind: type[Command], program: str, arguments: Sequence[str], **defaults: Any) -> Command:
    """Read a command's options.

    Args:
        kind: the command.
        program: how it was called, for the help.
        arguments: the options.
        **defaults: of some fields, instead of the class's own.

    Returns:
        The command; the process ends here when help was asked for or an option is wrong.
    """
    options: dict[str, Any] = {"default": kind(**defaults)} if defaults else {}
    flat = (tyro.conf.OmitArgPrefixes,)
    command: Command = tyro.cli(kind, prog=program, args=arguments, config=flat, **options)
    return command


def training(out: str | None, config: TrainConfig, program: str, arguments: Sequence[str]) -> TrainCommand:
    """Read the options of ``train``, with a preset's settings as defaults.

    Args:
        out: the folder if it was given; without, asking for it is tyro's task.
        config: the preset's settings.
        program: how it was called, for the help.
        arguments: the options.

    Returns:
        The command.
    """
    return parsed(TrainCommand, program, arguments, out=tyro.MISSING if out is None else out, config=config)
