"""Where results of long runs are kept: book/results/NAME.json, with what is needed to repeat them."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
PACKAGES = ("numpy", "scikit-learn", "torch")


def store(
    name: str, protocol: Mapping[str, Any], results: Mapping[str, Any], seconds: float, folder: Path = RESULTS
) -> Path:
    """Write a result with its protocol (command, seeds, ...) and where and how long it ran."""
    provenance = {
        **protocol,
        "commit": commit(),
        "date": datetime.now(tz=timezone.utc).strftime("%Y-%m-%d"),
        "wall_seconds": round(seconds, 1),
        "processor_seconds": round(time.process_time(), 1),
        "processor": f"{platform.machine()}, one thread",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"provenance": provenance, "results": results}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any]:
    """Read what ``store`` wrote."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def commit() -> str:
    """The commit checked out, with a plus sign when files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "HEAD") + changed
