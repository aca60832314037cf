"""The options of every command, as tyro reads them: fields are flags, docstrings are their help."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

import tyro
from tyro.conf import Positional

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import GROUPS, TrainConfig
from llqr_sam_ref.train.fields import incomplete, refusal

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
class Early:
    """Options of ``train`` that decide the defaults of the others.

    Args:
        preset: see TrainCommand.
        optimizer: see OptimizerConfig.
        base: see OptimizerConfig.
        out: see TrainCommand.
        resume: see TrainCommand.
    """

    preset: str | None = None
    optimizer: str | None = None
    base: str | None = None
    out: str | None = None
    resume: bool = False


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


def early(arguments: Sequence[str]) -> Early:
    """Read the options of ``train`` that decide the defaults of the others, and leave all others alone."""
    return _known(Early, arguments)


def training(out: str | None, config: TrainConfig, program: str, arguments: Sequence[str]) -> TrainCommand:
    """Read the options of ``train``, with a preset's settings as defaults.

    Args:
        out: the folder if it was given; without, asking for it is tyro's task.
        config: the preset's settings.
        program: how it was called, for the help.
        arguments: the options.

    Returns:
        The command.

    Raises:
        UserError: an option is given that nothing reads.
    """
    folder: Any = tyro.MISSING if out is None else out
    with incomplete():  # what the preset has, and the given options make unread, is not the user's mistake
        command = parsed(TrainCommand, program, arguments, out=folder, config=config)
    usual, given = config.flat(), command.config.flat()
    chosen = config.replace(**{name: value for name, value in given.items() if value != usual[name]})
    _check_read(chosen, arguments)
    return dataclasses.replace(command, config=chosen)


def _check_read(config: TrainConfig, arguments: Sequence[str]) -> None:
    """Refuse options that nothing reads, also where they say what is the default anyway."""
    reasons: dict[str, str] = {}
    kinds: list[tuple[str, Any, Any]] = []
    for name, group in GROUPS.items():
        hints, settings = get_type_hints(group), vars(getattr(config, name))
        for setting in settings:
            reason = group.missing_reader(setting, settings)
            if reason is not None and hints[setting] is not bool:  # a flag says nothing else than its default
                reasons[setting] = reason
                kinds.append((setting, hints[setting] | None, None))
    given = vars(_known(dataclasses.make_dataclass("Unread", kinds), arguments))
    for setting, value in given.items():
        if value is not None:
            raise UserError(refusal(setting, value, reasons[setting]))


def _known(kind: type[Command], arguments: Sequence[str]) -> Command:
    """The options of a class that are among others."""
    flat = (tyro.conf.OmitArgPrefixes,)
    command, _ = tyro.cli(kind, args=arguments, config=flat, return_unknown_args=True, add_help=False)
    return command
