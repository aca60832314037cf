"""Where results of long runs are kept: book/results/NAME.json, with what is needed to repeat them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llqr_sam_ref.train.provenance import environment

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"


def store(
    name: str, protocol: Mapping[str, Any], results: Mapping[str, Any], seconds: float, folder: Path = RESULTS
) -> Path:
    """Write a result with its protocol (command, seeds, ...) and where and how long it ran."""
    provenance = {
        **protocol,
        **environment(torch.device("cpu")),
        "date": datetime.now(tz=timezone.utc).strftime("%Y-%m-%d"),
        "wall_seconds": round(seconds, 1),
        "processor_seconds": round(time.process_time(), 1),
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"provenance": provenance, "results": results}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any]:
    """Read what ``store`` wrote; results of before it wrote what a run's record does have their names translated."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    provenance = content["provenance"]
    provenance.setdefault("versions", provenance.get("packages", {}))
    provenance.setdefault("device", provenance.get("processor", ""))
    return content
