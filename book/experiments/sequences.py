"""Is the question worth its gradient on sequences? A made-up language to translate, and sums modulo 31.

    python -m book.experiments.sequences --out RUNS --store      an hour and a half on one core; --jobs N for more

AdamW and LLQR, each alone, under SAM, and alone with twice the steps; the rules are those of ``question``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from book.experiments.peers.study import Options
from book.experiments.question import TWICE, Command, Comparison, answer

ASKING = {"adamw": "adamw-sam", "llqr": "llqr-sam"}
PAIRS = (
    ("llqr-sam", "llqr"),
    ("llqr-sam", "adamw-sam"),
    ("llqr-sam", TWICE.format("llqr")),
    ("adamw-sam", "adamw"),
    ("adamw-sam", TWICE.format("adamw")),
    ("llqr", "adamw"),
)


@dataclass(frozen=True, kw_only=True)
class Sequences(Command):
    """Command line of the study."""

    out: Path = Path("runs/sequences")


def main(command: Sequences) -> None:
    """Ask and answer."""
    options = Options(
        out=command.out,
        jobs=command.jobs,
        tasks=("translation", "modular"),
        methods=(*ASKING, *ASKING.values()),
        judged="validation",
        trials=12,
        most_trials=20,
    )
    words = "python -m book.experiments.sequences --out RUNS --store"
    answer(Comparison("sequences", options, ASKING, PAIRS), command, words)


if __name__ == "__main__":
    main(tyro.cli(Sequences))
