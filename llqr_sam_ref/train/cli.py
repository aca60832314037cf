"""The command line: train, evaluate, presets, compare.

python -m llqr_sam_ref train --preset digits-mlp --optimizer llqr-sam --out runs/first
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.train import compare as comparing
from llqr_sam_ref.train import record
from llqr_sam_ref.train.config import OPTIMIZERS, TrainConfig

PROGRAM = "python -m llqr_sam_ref"
HELP = f"""{PROGRAM} COMMAND ...

  train      train a preset, or go on training
  evaluate   test a run's newest checkpoint again
  presets    list presets, optimizers and models; show one preset's settings
  compare    put finished runs beside each other: a table and a picture

Begin with

  {PROGRAM} train --preset digits-mlp --optimizer llqr-sam --out runs/first

The same line goes on after Ctrl-C, a crash or a power cut, and under

  torchrun --nproc-per-node 2 -m llqr_sam_ref train ...

it uses several processes. `{PROGRAM} train --preset NAME --help` shows every setting with the preset's value.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None for the process's.

    Returns:
        0 when done, 1 when it failed, 2 when it was asked wrongly, 130 when it was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help", "help"}:
        print(HELP)
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "presets": _presets,
        "compare": _compare,
    }
    try:
        return commands[check_choice("command", given[0], commands)](given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the run's last checkpoint is as it was.", file=sys.stderr)
        return 130


def _train(given: list[str]) -> int:
    from llqr_sam_ref.train import checkpoint, presets
    from llqr_sam_ref.train.run import Stopped, train

    commands = _commands()
    words = _early(given[1:], ("preset", "optimizer", "base", "out"))
    wants_help = {"-h", "--help"} & set(given)
    if words["preset"] is not None:
        default = presets.configured(words["preset"], words["optimizer"], words["base"])
    elif "--resume" in given and words["out"] is not None:
        saved = checkpoint.load(Path(words["out"]), lambda text: print(text, file=sys.stderr))
        if saved is None:
            raise ValueError(f"--resume but {words['out']} has no checkpoint; pass the folder of a run.")
        default = TrainConfig.from_flat(saved["config"])
    elif wants_help:
        default = TrainConfig()
    else:
        raise ValueError(f"no preset; pass --preset NAME, one of {sorted(presets.PRESETS)}.")
    command = commands.training(words["out"], default, f"{PROGRAM} train", given[1:])
    try:
        result = train(command.config, command.out, arguments=given, resume=command.resume)
    except Stopped as stopped:
        if _first():
            print(stopped, file=sys.stderr)
        return 130
    path = Path(command.out) / record.NAME
    if _first():
        print(f"accuracy={result['result']['accuracy']:.4f} record={path}", flush=True)
    return 0


def _evaluate(given: list[str]) -> int:
    from llqr_sam_ref.train.evaluation import evaluate

    command = _commands().parsed(_commands().EvaluateCommand, f"{PROGRAM} evaluate", given[1:])
    values = evaluate(command.run, command.data_path, command.device)
    print(f"accuracy={values['accuracy']:.4f} loss={values['loss']:.4f} step={values['step']}")
    return 0


def _presets(given: list[str]) -> int:
    from llqr_sam_ref.train.models import MODELS
    from llqr_sam_ref.train.presets import PRESETS, configured

    command = _commands().parsed(_commands().PresetsCommand, f"{PROGRAM} presets", given[1:])
    if command.optimizers:
        _columns(OPTIMIZERS)
    elif command.models:
        print("\n".join((*MODELS, "package:function")))
    elif command.name is None:
        _columns({name: preset.about for name, preset in PRESETS.items()})
    else:
        config = configured(command.name, command.optimizer)
        preset = PRESETS[command.name]
        print("\n\n".join(filter(None, (preset.about, preset.note))) + "\n")
        usual = TrainConfig().flat()
        _columns({
            f"--{name.replace('_', '-')}": _shown(value)
            for name, value in config.flat().items()
            if value != usual[name] or name in {"optimizer", "base", "lr"}
        })
    return 0


def _compare(given: list[str]) -> int:
    command = _commands().parsed(_commands().CompareCommand, f"{PROGRAM} compare", given[1:])
    records = {name: record.read(name) for name in command.runs}
    if not records:
        raise ValueError("no runs; pass the folders or records of finished runs.")
    print(comparing.text(comparing.table(records, command.target)))
    from llqr_sam_ref.train.plots import draw

    print(f"picture={draw(records, Path(command.out))}")
    return 0


def _commands() -> ModuleType:
    """The module that reads options, which needs tyro."""
    try:
        from llqr_sam_ref.train import commands
    except ImportError as error:
        raise ValueError(f"the command line needs {error.name}; `pip install llqr-sam-ref[train]`.") from None
    return commands


def _early(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """Values of some flags before the rest is read: they decide the defaults of the rest."""
    found: dict[str, str | None] = dict.fromkeys(names)
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in found:
            found[name] = value if equals else following
    return found


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _columns(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, text in pairs.items():
        print(f"{name.ljust(width)}  {text}")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
