"""``python -m book.experiments.alignment``: run the study, or go on with it, and print what it found."""

from __future__ import annotations

import time
from functools import partial

import torch
import tyro

from book.experiments.alignment import captions, data, train
from book.experiments.alignment.study import FRESH_SEEDS, TUNING_SEEDS, Options, study
from book.experiments.store import store
from llqr_sam_ref.tables import Table
from llqr_sam_ref.train.provenance import environment
from llqr_sam_ref.train.record import rounded


def main(options: Options) -> None:
    """All stages, the comparisons, and the record if asked for."""
    start = time.perf_counter()
    results = study(options, partial(print, flush=True))
    head = ("what", "lead", "+-", "ahead", "p", "p corrected")
    print(
        Table(
            head,
            [
                tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
                for row in results["compared"]
            ],
        )
    )
    if options.store:
        protocol = {
            "command": "python -m book.experiments.alignment --data-path DATA --captions CAPTIONS --store",
            "encoder": captions.read(options.captions)[1],
            "tuning_seeds": TUNING_SEEDS,
            "fresh_seeds": FRESH_SEEDS,
            "steps": options.steps,
            "batch": train.BATCH,
            "environment": environment(torch.device(options.device)),
            "pictures": [data.TRAIN, data.VALIDATION, data.TEST],
        }
        print(store("alignment", protocol, rounded(results), time.perf_counter() - start))


if __name__ == "__main__":
    main(tyro.cli(Options))
