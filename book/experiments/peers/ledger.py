"""Finished runs: one JSON file each, found again by what was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llqr_sam_ref.train.checkpoint import write_atomically


@dataclass(frozen=True)
class Ledger:
    """A folder of results.

    Args:
        folder: where they are; made when the first is written.
        provenance: what every entry says of where it was made.
    """

    folder: Path
    provenance: Callable[[], Mapping[str, Any]] = dict

    def entry(self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The entry of a key: kept from before, or computed now and kept.

        Args:
            key: everything the result depends on; "task" and "method" say in which folder it lies.
            compute: computes it.

        Returns:
            {"key", "result", "provenance"} as JSON gives it back, whether it was kept or is new.

        Raises:
            ValueError: the file of this key is not an entry, or one of another key.
        """
        path = self.path(key)
        if not path.exists():
            entry = {"key": key, "result": compute(), "provenance": self.provenance()}
            text = json.dumps(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(text.encode()))
        return self.read(path, key)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the entry of a key is, or would be."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / str(key["task"]) / str(key["method"]) / f"{digest}.json"

    def read(self, path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
        """An entry, checked.

        Args:
            path: of the file.
            key: whose it should be.

        Returns:
            {"key", "result", "provenance"}.

        Raises:
            ValueError: it is not an entry, or one of another key.
        """
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            same = entry["key"] == json.loads(json.dumps(key)) and {"result", "provenance"} <= entry.keys()
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise ValueError(f"{path} is not the result it should be; delete it, and it is computed again.")
        return entry  # type: ignore[no-any-return]
