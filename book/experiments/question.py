"""Is the question worth its gradient? Bases alone, under SAM, and alone with twice the steps, by one set of rules.

The rules are the instrument's (``peers``): the same axes and budget, a setting judged on validation examples by the
worst of its tuning seeds, fresh seeds for the report. A SAM step costs two gradients, so the bases are run once more
with twice the steps, at the setting that was found for once: what they lose by that is not searched, so it counts
against them only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from book.experiments.peers.compare import holm, paired
from book.experiments.peers.study import FRESH, Options, made_with, processes, report, study
from book.experiments.peers.summary import LOSSES, Runs, loss_of, outcome, summarize
from book.experiments.store import store
from llqr_sam_ref.tables import Table
from llqr_sam_ref.train.record import rounded

TWICE = "{}, twice the steps"
QUICK = {"steps": 12, "tune_seeds": 2, "report_seeds": 2, "trials": 2, "most_trials": 3, "rounds": 2}


@dataclass(frozen=True)
class Comparison:
    """What is asked.

    Args:
        name: of the record.
        options: for the instrument; its methods are these and whoever else is to stand beside them.
        asking: base to the same base under SAM.
        pairs: who is compared with whom.
    """

    name: str
    options: Options
    asking: Mapping[str, str]
    pairs: Sequence[tuple[str, str]]

    def at_small_sizes(self) -> Comparison:
        """The same at sizes at which numbers mean nothing: does it run?"""
        return replace(self, options=replace(self.options, **QUICK))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the command lines of these studies have in common.

    Args:
        out: folder of the runs; the same folder goes on where it was stopped.
        jobs: processes, of one thread each.
        store: write the record to book/results.
        quick: sizes at which numbers mean nothing: does it run?
    """

    out: Path
    jobs: int = 1
    store: bool = False
    quick: bool = False


def answer(asked: Comparison, command: Command, words: str) -> None:
    """All stages, the tables, and the record if asked for.

    Args:
        asked: what.
        command: the command line.
        words: the command that makes the record again.
    """
    start = time.perf_counter()
    asked = asked.at_small_sizes() if command.quick else asked
    options = asked.options
    found = study(options, partial(print, flush=True))
    results = summarize(options, found)
    settings = {
        (task, base): found.found[task, base].setting for task in options.tasks for base in asked.asking
    }
    longer = {task: 2 * options.steps_of(task) for task in options.tasks}
    with processes(options.jobs) as each:
        again = report(options, settings, longer, each)
    reports = dict(found.reports)
    for (task, base), runs in again.items():
        name, row = TWICE.format(base), results["tasks"][task]["methods"][base]
        reports[task, name] = runs
        content = outcome(runs, results["tasks"][task]["target"], longer[task], row["seconds_per_step"])
        results["tasks"][task]["methods"][name] = {"setting": row["setting"], **content}
    results["compared"] = compared(reports, options.tasks, asked.pairs)
    print(_table(results))
    if command.store:
        protocol = {
            "command": words,
            "tuning_seeds": list(range(options.tune_seeds)),
            "fresh_seeds": list(range(FRESH, FRESH + options.report_seeds)),
            "trials": [options.trials, options.most_trials],
            "environment": made_with(options.device),
            "trained_at_commits": sorted({str(run["commit"]) for runs in reports.values() for run in runs}),
            "training_seconds": sum(f.seconds for f in found.found.values())
            + sum(run["seconds"] for runs in reports.values() for run in runs),
        }
        print(store(asked.name, rounded(protocol), rounded(results), time.perf_counter() - start))


def compared(
    reports: Mapping[tuple[str, str], Runs], tasks: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """One method over another on every task, seed by seed: ratio of losses and p, corrected for all of a kind."""
    rows: list[dict[str, Any]] = []
    for kind in LOSSES:
        of_this = []
        for task in tasks:
            for one, other in pairs:
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
