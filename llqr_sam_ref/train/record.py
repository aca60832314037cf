"""One small JSON file per run: what was asked, with what, on what, and what came out.

Where files lie is not part of it: paths mean nothing on another machine.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from llqr_sam_ref.errors import RunError, UserError
from llqr_sam_ref.train.checkpoint import write_atomically
from llqr_sam_ref.train.config import TrainConfig

NAME = "record.json"


def described(config: TrainConfig) -> dict[str, Any]:
    """All settings, without where the data lies."""
    return {name: value for name, value in config.flat().items() if name != "data_path"}


def rounded(value: Any) -> Any:
    """What a record keeps of a value.

    Args:
        value: anything JSON can hold.

    Returns:
        The same with six digits to every number, and None where it is not finite.
    """
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def write(folder: Path, record: dict[str, Any]) -> Path:
    """Write a run's record.

    Args:
        folder: of the run.
        record: anything JSON can hold; see ``rounded``.

    Returns:
        Where it is.

    Raises:
        RunError: it cannot be written; the record goes to standard error instead.
    """
    path = folder / NAME
    text = _text(rounded(record))
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        print(text, file=sys.stderr)
        raise RunError(f"{path} cannot be written ({error}); the record is printed above.") from error
    return path


def read(run: str | Path) -> dict[str, Any]:
    """Read a run's record.

    Args:
        run: the run's folder, or the file itself.

    Returns:
        The record.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = Path(run)
    path = path / NAME if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path} does not exist; a run writes its record when it is finished.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(record, dict) and {"config", "metrics", "result"} <= record.keys()
    except ValueError:
        complete = False
    if not complete:
        raise UserError(f"{path} is not the record of a run; remove it, or name another.")
    return record  # type: ignore[no-any-return]


def _text(record: dict[str, Any]) -> str:
    """JSON with one entry per line, and in lists of objects one of these per line."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            shown = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        else:
            shown = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
