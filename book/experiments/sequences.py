"""Is the question worth its gradient on sequences? A made-up language to translate, and sums modulo 31.

    python -m book.experiments.sequences --out RUNS --store      an hour and a half on one core; --jobs N for more

AdamW and LLQR, each alone, under SAM, and alone with twice the steps; the rules are those of ``question``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from book.experiments.peers.study import Options
from book.experiments.question import TWICE, Comparison, answer

ASKING = {"adamw": "adamw-sam", "llqr": "llqr-sam"}
PAIRS = (
    ("llqr-sam", "llqr"),
    ("llqr-sam", "adamw-sam"),
    ("llqr-sam", TWICE.format("llqr")),
    ("adamw-sam", "adamw"),
    ("adamw-sam", TWICE.format("adamw")),
    ("llqr", "adamw"),
)


@dataclass(frozen=True)
class Command:
    """Command line of the study.

    Args:
        out: folder of the runs; the same folder goes on where it was stopped.
        jobs: processes, of one thread each.
        store: write book/results/sequences.json.
        quick: sizes at which numbers mean nothing: does it run?
    """

    out: Path = Path("runs/sequences")
    jobs: int = 1
    store: bool = False
    quick: bool = False


def main(command: Command) -> None:
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
    asked = Comparison("sequences", options, ASKING, PAIRS)
    words = "python -m book.experiments.sequences --out RUNS --store"
    answer(asked.quick() if command.quick else asked, words, keep=command.store)


if __name__ == "__main__":
    main(tyro.cli(Command))
