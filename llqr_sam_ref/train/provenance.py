"""Where a number comes from: the command, the commit, the versions and the machine.

Where files lie is not part of it: paths mean nothing on another machine.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PATHS = {"--out": "OUT", "--data-path": "DATA"}
PACKAGES = ("llqr-sam-ref", "torch", "numpy", "scikit-learn", "torchvision", "timm", "pytorch-optimizer")


def command(arguments: Sequence[str]) -> str:
    """The command line that trains the same again, with paths replaced by OUT and DATA.

    Args:
        arguments: those of the program, its name left out; none if it was started from Python.

    Returns:
        One line, of the shell or of Python.
    """
    if not arguments:
        return "llqr_sam_ref.train.train(TrainConfig.from_flat(config), OUT)"
    words: list[str] = []
    hidden = ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        name = name.replace("_", "-")
        if hidden:
            words.append(hidden)
            hidden = ""
        elif name in PATHS:
            words.append(f"{name}={PATHS[name]}" if equals else name)
            hidden = "" if equals else PATHS[name]
        else:
            words.append(argument)
    return " ".join(("python -m llqr_sam_ref", *words))


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The commit, the versions and the machine.

    Args:
        device: where the run computes.
        processes: how many trained together.

    Returns:
        {"commit", "versions", "device", "processes", "threads", "system"}.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        versions["cuda"] = str(torch.version.cuda)
    return {
        "commit": commit(),
        "versions": versions,
        "device": f"{device.type} ({name})",
        "processes": processes,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def commit() -> str | None:
    """The commit of the package's source, "+" behind it if files differ; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(
                ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "llqr_sam_ref"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")
