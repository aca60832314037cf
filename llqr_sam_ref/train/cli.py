"""The command line: train, evaluate, presets, compare.

python -m llqr_sam_ref train --preset digits-mlp --optimizer llqr-sam --out runs/first
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llqr_sam_ref.errors import RunError, UserError, check_choice, needs
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.methods import METHODS

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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; the run's last checkpoint is as it was.", file=sys.stderr)
        return 130


def _train(given: list[str]) -> int:
    needs("torch", "train")
    from llqr_sam_ref.train import checkpoint, presets, record
    from llqr_sam_ref.train.earlier import as_now
    from llqr_sam_ref.train.run import Stopped, train

    commands = _commands()
    early = commands.early(given[1:])
    if early.preset is not None:
        default = presets.configured(early.preset, early.optimizer, early.base)
    elif early.resume and early.out is not None:
        saved = checkpoint.load(Path(early.out), lambda text: print(text, file=sys.stderr))
        if saved is None:
            raise UserError(f"--resume but {early.out} has no checkpoint; pass the folder of a run.")
        default = as_now(saved["config"], early.out, saved.get("version", 1))
    elif {"-h", "--help"} & set(given):
        default = TrainConfig()
    else:
        raise UserError(f"no preset; pass --preset NAME, one of {sorted(presets.PRESETS)}.")
    command = commands.training(early.out, default, f"{PROGRAM} train", given[1:])
    try:
        result = train(command.config, command.out, arguments=given, resume=command.resume)
    except Stopped as stopped:
        if _first():
            print(stopped, file=sys.stderr)
        return 130
    except (UserError, RunError, BrokenPipeError):
        raise
    except Exception:
        traceback.print_exc()
        if _first():
            print(checkpoint.kept(Path(command.out)), file=sys.stderr)
        return 1
    path = Path(command.out) / record.NAME
    if _first():
        print(f"accuracy={result['result']['accuracy']:.4f} record={path}", flush=True)
    return 0


def _evaluate(given: list[str]) -> int:
    needs("torch", "train")
    from llqr_sam_ref.train.evaluation import evaluate

    command = _commands().parsed(_commands().EvaluateCommand, f"{PROGRAM} evaluate", given[1:])
    values = evaluate(command.run, command.data_path, command.device)
    print(f"accuracy={values['accuracy']:.4f} loss={values['loss']:.4f} step={values['step']}")
    return 0


def _presets(given: list[str]) -> int:
    from llqr_sam_ref.train.presets import PRESETS, configured

    command = _commands().parsed(_commands().PresetsCommand, f"{PROGRAM} presets", given[1:])
    if command.optimizers:
        _columns({name: method.about for name, method in METHODS.items()})
    elif command.models:
        needs("torch", "train")
        from llqr_sam_ref.train.models import MODELS

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
    needs("torch", "train")
    from llqr_sam_ref.train import compare, record

    command = _commands().parsed(_commands().CompareCommand, f"{PROGRAM} compare", given[1:])
    records = {name: record.read(name) for name in command.runs}
    if not records:
        raise UserError("no runs; pass the folders or records of finished runs.")
    print(compare.text(compare.table(records, command.target)))
    needs("matplotlib", "train")
    from llqr_sam_ref.train.plots import draw

    print(f"picture={draw(records, Path(command.out))}")
    return 0


def _commands() -> ModuleType:
    """The module that reads options, which needs tyro."""
    needs("tyro", "train")
    from llqr_sam_ref.train import commands

    return commands


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _columns(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, text in pairs.items():
        print(f"{name.ljust(width)}  {text}")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
