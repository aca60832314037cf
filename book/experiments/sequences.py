"""Is the question worth its gradients on sequences? A made-up language to translate, and sums modulo 31.

    python -m book.experiments.sequences --out RUNS --store      an hour and a half on one core; --jobs N for more

AdamW and LLQR, each alone and under SAM, by the instrument's rules (``peers``): the same axes and budget, a setting
judged on validation examples by the worst of five tuning seeds, ten fresh seeds for the report. A SAM step costs two
gradients, so the two without a question are run once more with twice the steps, at the setting that was found for
once: what they lose by that is not searched, so it counts against them only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from book.experiments.peers.compare import holm, paired
from book.experiments.peers.study import FRESH, Options, Study, made_with, processes, reported, study
from book.experiments.peers.summary import Runs, loss_of, outcome, summarize
from book.experiments.store import store
from llqr_sam_ref.tables import Table
from llqr_sam_ref.train.record import rounded

TASKS = ("translation", "modular")
BASES, ASKING = ("adamw", "llqr"), {"adamw": "adamw-sam", "llqr": "llqr-sam"}
TWICE = "{}, twice the steps"
PAIRS = (
    ("llqr-sam", "llqr"),
    ("llqr-sam", "adamw-sam"),
    ("llqr-sam", TWICE.format("llqr")),
    ("adamw-sam", "adamw"),
    ("adamw-sam", TWICE.format("adamw")),
    ("llqr", "adamw"),
)
LOSSES = ("training", "test")


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

    def options(self) -> Options:
        """What the instrument is asked for."""
        whole = Options(
            out=self.out,
            jobs=self.jobs,
            tasks=TASKS,
            methods=(*BASES, *ASKING.values()),
            judged="validation",
            trials=12,
            most_trials=20,
        )
        small = {"steps": 12, "tune_seeds": 2, "report_seeds": 2, "trials": 2, "most_trials": 3, "rounds": 2}
        return replace(whole, **small) if self.quick else whole


def twice(options: Options, found: Study) -> dict[tuple[str, str], Runs]:
    """The bases with fresh seeds and twice the steps."""
    pairs = [(task, base) for task in options.tasks for base in BASES]
    works = [
        partial(
            reported,
            replace(options, steps=2 * options.steps_of(task)),
            found.found[task, base].setting,
            (task, base),
        )
        for task, base in pairs
    ]
    with processes(options.jobs) as each:
        return {
            (task, TWICE.format(base)): runs for (task, base), runs in zip(pairs, each(works), strict=True)
        }


def compared(reports: dict[tuple[str, str], Sequence[Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One method over another on every task, seed by seed: ratio of losses and p, corrected for all of a kind."""
    rows: list[dict[str, Any]] = []
    for kind in LOSSES:
        of_this = []
        for task in tasks:
            for one, other in PAIRS:
                a, b = ([loss_of(run, kind) for run in reports[task, name]] for name in (one, other))
                of_this.append({
                    "what": f"{kind} {task}: {one} over {other}",
                    "ahead": sum(x < y for x, y in zip(a, b, strict=True)),
                    **asdict(paired(a, b)),
                })
        for test in ("t", "wilcoxon"):
            known = [row for row in of_this if row[test] is not None]
            for row, p in zip(known, holm([row[test] for row in known]), strict=True):
                row[test] = p
        rows += of_this
    return rows


def main(command: Command) -> None:
    """All stages, the tables, and the record if asked for."""
    start = time.perf_counter()
    options = command.options()
    found = study(options, partial(print, flush=True))
    results = summarize(options, found)
    reports = dict(found.reports)
    for (task, name), runs in twice(options, found).items():
        reports[task, name] = runs
        row = results["tasks"][task]["methods"][name.split(",")[0]]
        results["tasks"][task]["methods"][name] = {
            "setting": row["setting"],
            **outcome(
                runs, results["tasks"][task]["target"], 2 * options.steps_of(task), row["seconds_per_step"]
            ),
        }
    results["compared"] = compared(reports, options.tasks)
    print(_table(results))
    if command.store:
        protocol = {
            "command": "python -m book.experiments.sequences --out RUNS --store",
            "tuning_seeds": list(range(options.tune_seeds)),
            "fresh_seeds": list(range(FRESH, FRESH + options.report_seeds)),
            "trials": [options.trials, options.most_trials],
            "environment": made_with(options.device),
            "trained_at_commits": sorted({str(run["commit"]) for runs in reports.values() for run in runs}),
            "training_seconds": sum(f.seconds for f in found.found.values())
            + sum(run["seconds"] for runs in reports.values() for run in runs),
        }
        print(store("sequences", rounded(protocol), rounded(results), time.perf_counter() - start))


def _table(results: dict[str, Any]) -> str:
    lines = []
    for task, content in results["tasks"].items():
        for name, row in content["methods"].items():
            losses = [f"{row[f'{kind}_loss']:.4g} +- {row[f'{kind}_spread'] or 0:.2g}" for kind in LOSSES]
            lines.append((task, name, *losses, f"{row['test_error']:.3f}", str(row["setting"])))
    pairs = [
        (row["what"], f"{row['ratio']:.3f}", str(row["ahead"]), str(row["t"]), str(row["wilcoxon"]))
        for row in results["compared"]
    ]
    first = Table(("task", "method", *(f"{kind} loss" for kind in LOSSES), "test error", "setting"), lines)
    return f"{first!r}\n\n{Table(('what', 'ratio', 'ahead', 't', 'wilcoxon'), pairs)!r}"


if __name__ == "__main__":
    main(tyro.cli(Command))
