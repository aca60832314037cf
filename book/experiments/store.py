"""Where results of long runs are kept: book/results/NAME.json, with what is needed to repeat them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"

# Results of before this day call by these names what now has a name of its own: then it was the default.
SAMPLED_SINCE = "2026-11-26"
NAMES = {
    "llqr": "llqr-sampled",
    "llqr-sam": "llqr-sampled-sam",
    "LLQR as it comes / SGD": "LLQR sampled / SGD",
    "LLQR+SAM as it comes / SGD": "LLQR+SAM sampled / SGD",
    "LLQR+SAM as it comes": "LLQR+SAM sampled",
    "LLQR as it comes (every 10, max_side 1024) / base, batch 128": (
        "LLQR sampled (every 10, max_side 1024) / base, batch 128"
    ),
    "  of which the step, by default": "  of which the step, sampled",
    "  of which refits, by default": "  of which refits, sampled",
}


def store(
    name: str, protocol: Mapping[str, Any], results: Mapping[str, Any], seconds: float, folder: Path = RESULTS
) -> Path:
    """Write a result with its protocol (command, seeds, ...) and where and how long it ran."""
    import torch  # not where results are only read: a page that shows them need not have it

    from llqr_sam_ref.train.provenance import environment

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
    """Read what ``store`` wrote; what earlier versions named otherwise has its present name."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    provenance = content["provenance"]
    provenance.setdefault("versions", provenance.get("packages", {}))
    provenance.setdefault("device", provenance.get("processor", ""))
    if provenance["date"] < SAMPLED_SINCE:
        content["results"] = _renamed(content["results"])
    return content


def _renamed(value: Any) -> Any:
    """Results with the rows of methods, and what was measured of them, under their present names."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    rows = {
        NAMES.get(key, key) if isinstance(item, dict) else key: _renamed(item) for key, item in value.items()
    }
    return {**rows, "what": NAMES.get(rows["what"], rows["what"])} if "what" in rows else rows
