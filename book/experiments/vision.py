"""Is the question worth its gradient on images? A small ResNet and a ViT on Fashion-MNIST.

    python -m book.experiments.vision --data-path DATA --out RUNS --device cuda --jobs 14 --store    half an hour

SGD, AdamW and LLQR, each alone, under SAM, and alone with twice the steps, with Muon beside them; the rules are those
of ``question``. Settings are chosen on 10000 training images that nobody trains on; the test images are looked at by
fresh seeds only. The same command goes on where it was stopped. Without a card it takes hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from book.experiments.peers.study import Options
from book.experiments.question import TWICE, Command, Comparison, answer

ASKING = {"sgd": "sam", "adamw": "adamw-sam", "llqr": "llqr-sam"}
PAIRS = (
    *(("llqr-sam", other) for other in ("llqr", "sam", TWICE.format("llqr"), TWICE.format("sgd"))),
    *((asks, base) for base, asks in ASKING.items() if base != "llqr"),
    *((asks, TWICE.format(base)) for base, asks in ASKING.items() if base != "llqr"),
    *(("llqr", other) for other in ("sgd", "adamw", "muon")),
)


@dataclass(frozen=True, kw_only=True)
class Vision(Command):
    """Command line of the study.

    Args:
        data_path: folder of Fashion-MNIST's four files.
        device: cpu, cuda and the like.
    """

    data_path: str
    out: Path = Path("runs/vision")
    device: str = "cpu"


def main(command: Vision) -> None:
    """Ask and answer."""
    options = Options(
        out=command.out,
        jobs=command.jobs,
        device=command.device,
        data_path=command.data_path,
        tasks=("fashion", "fashion-vit"),
        methods=(*ASKING, *ASKING.values(), "muon"),
        judged="validation",
        tune_seeds=3,
        trials=8,
        most_trials=14,
    )
    words = f"python -m book.experiments.vision --data-path DATA --out RUNS --device {command.device}"
    words += f" --jobs {command.jobs}" * (command.jobs > 1) + " --store"
    answer(Comparison("vision", options, ASKING, PAIRS), command, words)


if __name__ == "__main__":
    main(tyro.cli(Vision))
