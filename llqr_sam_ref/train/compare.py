"""Runs beside each other: those that differ in nothing but the seed are one line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from llqr_sam_ref.tables import Table
from llqr_sam_ref.train.config import FREE

# What a line may differ in without being another line.
IRRELEVANT = FREE | {"seed"}
Record = Mapping[str, Any]


def grouped(records: Mapping[str, Record]) -> dict[str, list[Record]]:
    """Records that differ in nothing but the seed, under a name that says how the groups differ.

    Args:
        records: of runs, by name.

    Returns:
        Groups by name: the optimizer, and every other setting that is not the same everywhere.
    """
    groups: dict[str, list[Record]] = {}
    for record in records.values():
        key = json.dumps(
            {k: v for k, v in record["config"].items() if k not in IRRELEVANT}
            | {"version": record.get("version", 1)},
            sort_keys=True,
        )
        groups.setdefault(key, []).append(record)
    settings = [json.loads(key) for key in groups]
    varied = (
        sorted(
            name
            for name in settings[0]
            if name != "optimizer" and any(s[name] != settings[0][name] for s in settings)
        )
        if settings
        else []
    )
    named: dict[str, list[Record]] = {}
    for setting, group in zip(settings, groups.values(), strict=True):
        twins = [s for s in settings if s["optimizer"] == setting["optimizer"]]
        telling = [name for name in varied if any(s[name] != setting[name] for s in twins)]
        parts = [setting["optimizer"], *(f"{name}={setting[name]}" for name in telling)]
        named[" ".join(parts)] = group
    return named


def time_to(record: Record, accuracy: float, clock: str = "seconds") -> float | None:
    """When a run's test accuracy first reached a value.

    Args:
        record: of the run.
        accuracy: the value.
        clock: "seconds", "epoch" or "step".

    Returns:
        The reading, None if it never did.
    """
    reached = (
        row[clock]
        for row in record["metrics"]
        if row["test_accuracy"] is not None and row["test_accuracy"] >= accuracy
    )
    return next(reached, None)


def table(records: Mapping[str, Record], target: float | None = None) -> list[dict[str, str]]:
    """One row per group: accuracy and loss with their spread over seeds, speed, time to an accuracy, sharpness.

    Args:
        records: of runs, by name.
        target: accuracy to be reached; None for the lowest of the groups' mean accuracies.

    Returns:
        Rows of texts, the same keys in each.
    """
    groups = grouped(records)
    if target is None:
        means = [statistics.fmean(r["result"]["accuracy"] for r in group) for group in groups.values()]
        target = min(means, default=0.0)
    rows = []
    for name, group in groups.items():
        times = [time_to(record, target) for record in group]
        reached = [time for time in times if time is not None]
        eigenvalues = [
            (record["sharpness"] or {}).get("top_eigenvalue") for record in group if record.get("sharpness")
        ]
        rows.append({
            "run": name,
            "seeds": str(len(group)),
            "accuracy": _spread([record["result"]["accuracy"] for record in group], 4),
            "loss": _spread([record["result"]["loss"] for record in group], 4),
            "per second": _spread([record["result"]["per_second"] for record in group], 0),
            f"seconds to {target:.4f}": (_spread(reached, 1) if reached else "-")
            + ("" if len(reached) == len(group) else f" ({len(reached)} of {len(group)})"),
            "top eigenvalue": _spread([e for e in eigenvalues if e is not None], 2),
        })
    return rows


def text(rows: Sequence[Mapping[str, str]]) -> str:
    """A table for a terminal.

    Args:
        rows: the same keys in each.

    Returns:
        Lines, columns aligned.
    """
    if not rows:
        return ""
    return repr(Table(list(rows[0]), [list(row.values()) for row in rows]))


def _spread(values: Sequence[float | None], digits: int) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} +- {statistics.stdev(numbers):.{digits}f}"
