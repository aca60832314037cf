"""All experiments with one command, one after the other.

    python -m book.experiments                       what there is: every record, its command, when and how long it ran
    python -m book.experiments --run all             make them again, each with its own command
    python -m book.experiments --run stress budget   or some of them

The commands are those that the records themselves name. Studies that keep their runs in a folder go on where they were
stopped; where a record's command has DATA, the folder of Fashion-MNIST's four files is asked for.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from book.experiments.store import RESULTS
from llqr_sam_ref.tables import Table

SUPERSEDED = {"budget_by_benefit": "made by an earlier version of its command; see chapter 18"}


@dataclass(frozen=True)
class Options:
    """What is run.

    Args:
        run: names of records, or all; none to see what there is.
        data_path: what DATA stands for.
        out: the folder that RUNS and CAPTIONS lie in.
    """

    run: tuple[str, ...] = ()
    data_path: Path | None = None
    out: Path = Path("runs")


def records() -> dict[str, dict[str, object]]:
    """Where every record comes from, by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["provenance"]
        for path in sorted(RESULTS.glob("*.json"))
        if path.stem not in SUPERSEDED
    }


def command(name: str, origin: dict[str, object], options: Options) -> list[str]:
    """What makes a record again.

    Args:
        name: of the record.
        origin: its provenance.
        options: where data and runs are.

    Returns:
        The arguments, this Python first.

    Raises:
        SystemExit: it needs data, and no folder was given.
    """
    words = shlex.split(str(origin["command"]))
    if "DATA" in words and options.data_path is None:
        raise SystemExit(f"{name} needs Fashion-MNIST's four files; pass --data-path FOLDER.")
    stands_for = {
        "python": sys.executable,
        "DATA": str(options.data_path),
        "RUNS": str(options.out / name),
        "CAPTIONS": str(options.out / "captions.pt"),
    }
    return [stands_for.get(word, word) for word in words]


def main(options: Options) -> None:
    """Show, or run."""
    known = records()
    if not options.run:
        rows = [
            (name, str(o["date"]), f"{float(str(o['wall_seconds'])) / 60:.0f} min", str(o["command"])[10:80])
            for name, o in known.items()
        ]
        print(Table(("record", "made on", "took", "command"), rows))
        return
    chosen = tuple(known) if options.run == ("all",) else options.run
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"there is no record {unknown[0]!r}; there are {', '.join(known)}.")
    commands = {
        name: command(name, known[name], options) for name in chosen
    }  # asks for data before the first hour
    for count, (name, arguments) in enumerate(commands.items(), start=1):
        print(f"{count} of {len(commands)}: {name}", flush=True)
        start = time.perf_counter()
        subprocess.run(arguments, check=True)
        print(f"{name} took {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
