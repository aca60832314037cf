"""Checkpoints that are either whole or not there, and say what they are.

A file is written beside its place, forced to the disk, and then renamed: whoever is killed leaves the one before.
The one before that is kept too, for a file that was damaged later. Nothing but tensors, numbers and names is in a
file, and nothing else is ever loaded (``weights_only``).
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llqr_sam_ref.errors import RunError

FORMAT, VERSION = "llqr_sam_ref run", 2
NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
KEYS = ("config", "step", "model", "optimizer", "scaler", "meters", "history", "seconds")


class CheckpointError(RunError):
    """A checkpoint cannot be written or read."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is whole or not there, whenever the process or the machine stops.

    Args:
        path: where it will be.
        write: writes the content into an open file.

    Raises:
        OSError: it cannot be written; what was at ``path`` still is.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def save(folder: Path, content: dict[str, Any]) -> Path:
    """Write a run's checkpoint; the one that was there becomes the previous one.

    Args:
        folder: of the run.
        content: what ``KEYS`` lists.

    Returns:
        Where it is.

    Raises:
        CheckpointError: it cannot be written, for instance on a full disk; the earlier ones are untouched.
    """
    path, previous = folder / NAME, folder / PREVIOUS
    content = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), **content}
    try:
        fresh = folder / ".checkpoint.new.pt"
        write_atomically(fresh, lambda file: torch.save(content, file))
        if path.exists():
            path.replace(previous)
        fresh.replace(path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"no checkpoint of step {content['step']} in {folder}: {error}; make room or permit writing. "
            "The one before is untouched."
        ) from error
    return path


def load(folder: Path, say: Callable[[str], object]) -> dict[str, Any] | None:
    """Read a run's newest checkpoint that can be read.

    Args:
        folder: of the run.
        say: told when the newest is damaged and the one before is taken.

    Returns:
        What was saved, or None if the run has no checkpoint yet.

    Raises:
        CheckpointError: there are files and none can be read.
    """
    # Between the two renames of save() the newest has its first name still.
    paths = [folder / name for name in (NAME, ".checkpoint.new.pt", PREVIOUS)]
    existing = [path for path in paths if path.exists()]
    problems = []
    for path in existing:
        try:
            content = read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem} Going on from {path.name}, step {content['step']}.")
        return content
    if problems:
        raise CheckpointError(
            " ".join(problems) + f" Restore one, or start anew in another folder than {folder}."
        )
    return None


def kept(folder: Path) -> str:
    """What is left of a run that was broken off, in words.

    Args:
        folder: of the run.

    Returns:
        A sentence.
    """
    try:
        content = load(folder, lambda text: None)
    except CheckpointError as error:
        return str(error)
    if content is None:
        return f"no checkpoint was written to {folder} yet."
    return f"{folder} has the checkpoint of step {content['step']}; the same command goes on from it."


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Args:
        path: the file.

    Returns:
        What was saved, tensors on the host.

    Raises:
        CheckpointError: it is missing, truncated, of another program, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would not look at the sums of what it reads
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong sum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"it asks for {code[1]}" if code else "it is no plain data"
        raise CheckpointError(f"{path} is not a checkpoint of a run: {asks}.") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path} is truncated or damaged ({reason}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a run; pass the folder that train was given.")
    if content["version"] > VERSION:
        raise CheckpointError(
            f"{path} has version {content['version']}, and this package reads up to {VERSION}; update it."
        )
    if missing := [key for key in KEYS if key not in content]:
        raise CheckpointError(f"{path} has no {missing}; it is damaged.")
    return content


def _sync_folder(folder: Path) -> None:
    """Force a rename to the disk, where folders can be opened (not on Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
