"""From runs to numbers: means and spreads, what it takes to reach a target, comparisons, one rate for all tasks."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from book.experiments.peers.compare import Comparison, holm, one_rate, paired
from book.experiments.peers.methods import METHODS
from book.experiments.peers.study import FRESH, Options, Study, made_with
from book.experiments.peers.tasks import TASKS
from book.experiments.store import RESULTS, store
from llqr_sam_ref.tables import Table
from llqr_sam_ref.train.record import rounded

Runs = Sequence[Mapping[str, Any]]
LOSSES = ("training", "test")
TARGET = "adamw"  # the target of a task is where this method ends
HIDDEN = {"out": "RUNS", "data_path": "DATA"}


def loss_of(run: Mapping[str, Any], kind: str) -> float:
    """The final training loss or the test loss of a run; infinite if it diverged."""
    if run["diverged"]:
        return math.inf
    return float(run["final"] if kind == "training" else run["test"]["loss"])


def mean(values: Sequence[float]) -> float:
    """The mean, infinite as soon as one of the values is."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.inf


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds, where there is one."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def reached(run: Mapping[str, Any], target: float, steps: int) -> float:
    """The step at which the training loss, as the mean of a block, is at the target; infinite if never."""
    curve = run["curve"]
    at = next((i for i, loss in enumerate(curve) if loss <= target), None)
    return math.inf if at is None else round((at + 1) * steps / len(curve))


def summarize(options: Options, study: Study) -> dict[str, Any]:
    """Everything that is told of a study.

    Args:
        options: the command line.
        study: what its stages gave.

    Returns:
        {"tasks": {task: {..., "methods": {method: {...}}}}, "one_rate": {method: {...}}}, numbers not yet rounded.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task in options.tasks:
        reports = {method: study.reports[task, method] for method in options.methods}
        finals = {m: mean([loss_of(run, "training") for run in runs]) for m, runs in reports.items()}
        order = sorted(finals, key=finals.__getitem__)
        target = finals.get(TARGET, max(filter(math.isfinite, finals.values()), default=math.inf))
        rows = {}
        for method, runs in reports.items():
            seconds = float(np.quantile(study.seconds[task, method], 0.25))
            rows[method] = {
                **asdict(study.found[task, method]),
                "rank": order.index(method) + 1,
                **outcome(runs, target, options.steps_of(task), seconds),
            }
        tasks[task] = {
            "about": TASKS[task].about,
            "kind": TASKS[task].kind,
            "steps": options.steps_of(task),
            "target": target,
            "methods": rows,
        }
    for (task, method), comparison in comparisons(options, study).items():
        tasks[task]["methods"][method]["against_reference"] = comparison
    return {
        "tasks": tasks,
        "one_rate": {method: shared_rate(options, study, method) for method in options.methods},
    }


def outcome(runs: Runs, target: float, steps: int, seconds: float) -> dict[str, Any]:
    """What the runs of a method on a task with fresh seeds say.

    Args:
        runs: one per seed.
        target: training loss to reach.
        steps: of a run.
        seconds: of a step.

    Returns:
        Losses and spreads, costs, steps to the target, what was watched, and the mean curve.
    """
    whole = [run for run in runs if not run["diverged"]]
    evaluations = statistics.fmean(run["evaluations"] for run in whole) / steps if whole else math.inf
    to_target = float(np.median([reached(run, target, steps) for run in runs]))
    errors = [run["test"]["error"] for run in whole if "error" in run["test"]]
    watched = {
        name: statistics.fmean(row[name] for run in whole for row in run["watched"])
        for name in ("radius", "distance", "cosine")
        if any(name in row for run in whole for row in run["watched"])
    }
    losses = {kind: [loss_of(run, kind) for run in runs] for kind in LOSSES}
    return {
        **{f"{kind}_loss": mean(values) for kind, values in losses.items()},
        **{f"{kind}_spread": spread(values) for kind, values in losses.items()},
        **{f"{kind}_losses": values for kind, values in losses.items()},
        "test_error": mean(errors) if errors else None,
        "report_diverged": len(runs) - len(whole),
        "evaluations_per_step": evaluations,
        "seconds_per_step": seconds,
        "to_target": {
            "steps": to_target,
            "evaluations": to_target * evaluations,
            "seconds": to_target * seconds,
        },
        "watched": watched,
        "curve": [statistics.fmean(values) for values in zip(*(run["curve"] for run in whole), strict=True)],
    }


def comparisons(options: Options, study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    """All methods against the reference on all tasks, p-values corrected for the number of them.

    Training and test loss, and the two tests, are different questions: each has its own correction.
    """
    pairs = [pair for pair in options.pairs if pair[1] != options.reference]
    result: dict[tuple[str, str], dict[str, Any]] = {pair: {} for pair in pairs}
    for kind in LOSSES:
        raw: dict[tuple[str, str], Comparison] = {}
        for task, method in pairs:
            sides = [study.reports[task, name] for name in (method, options.reference)]
            raw[task, method] = paired(*([loss_of(run, kind) for run in runs] for runs in sides))
        for pair, comparison in raw.items():
            result[pair][kind] = asdict(comparison)
        for test in ("t", "wilcoxon"):
            known = [pair for pair in pairs if result[pair][kind][test] is not None]
            corrected = holm([result[pair][kind][test] for pair in known])
            for pair, p in zip(known, corrected, strict=True):
                result[pair][kind][test] = p
    return result


def shared_rate(options: Options, study: Study, method: str) -> dict[str, Any]:
    """The learning rate that is nearest to the best of all tasks, and the largest factor between them."""
    best = {task: study.found[task, method].setting.lr for task in options.tasks}
    rate, factor = one_rate(list(best.values()))
    return {"lr": rate, "largest_factor": factor, "best": best}


# For people.


def number(value: float | None, digits: int = 4) -> str:
    """A number as a table shows it; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def task_table(results: Mapping[str, Any], task: str) -> Table:
    """All methods on a task, the best training loss first."""
    rows = results["tasks"][task]["methods"]
    head = (
        *("method", "training loss", "+-", "test loss", "test error", "p", "to target", "evals", "s"),
        *("ms/step", "lr", "decay", "own", "trials", "diverged", "radius", "|U-I|/|I|", "cos(Ug,g)"),
    )
    lines = []
    for name in sorted(rows, key=lambda method: rows[method]["rank"]):
        row = rows[name]
        against = row.get("against_reference", {}).get("training", {})
        lines.append([
            METHODS[name].about,
            number(row["training_loss"]),
            number(row["training_spread"], 2),
            number(row["test_loss"]),
            number(row["test_error"], 3),
            number(against.get("t"), 2),
            number(row["to_target"]["steps"]),
            number(row["to_target"]["evaluations"]),
            number(row["to_target"]["seconds"], 3),
            number(1e3 * row["seconds_per_step"], 3),
            number(row["setting"]["lr"], 3),
            number(row["setting"]["decay"], 3),
            f"{METHODS[name].own} {number(row['setting']['own'], 3)}",
            f"{row['trials']}{'' if row['inner'] else ' (edge)'}",
            f"{row['diverged']}/{row['runs']}, {row['report_diverged']}",
            *(number(row["watched"].get(value), 3) for value in ("radius", "distance", "cosine")),
        ])
    return Table(head, lines)


def overview(results: Mapping[str, Any]) -> Table:
    """Final training losses, a row per method and a column per task, and how far one learning rate is from the best."""
    tasks = results["tasks"]
    head = ("method", *tasks, "mean rank", "one lr", "within")
    lines = []
    for name, rate in results["one_rate"].items():
        rows = [task["methods"][name] for task in tasks.values()]
        losses = [f"{number(row['training_loss'])} ({row['rank']})" for row in rows]
        ranks = statistics.fmean(row["rank"] for row in rows)
        lines.append([
            METHODS[name].about,
            *losses,
            f"{ranks:.1f}",
            number(rate["lr"], 3),
            number(rate["largest_factor"], 3),
        ])
    return Table(head, lines)


def text(results: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [
        f"{task['about']}, {task['steps']} steps, target {number(task['target'])}\n{task_table(results, name)!r}"
        for name, task in results["tasks"].items()
    ]
    return "\n\n".join([*parts, f"Final training loss (rank)\n{overview(results)!r}"])


def keep(
    options: Options, study: Study, results: Mapping[str, Any], seconds: float, folder: Path = RESULTS
) -> Path:
    """Write peers.json: the numbers, and what is needed to repeat them.

    Args:
        options: the command line.
        study: what its stages gave.
        results: the summary.
        seconds: that this command took; runs that were kept from before cost it nothing.
        folder: where.

    Returns:
        The file.
    """
    runs = [run for group in study.reports.values() for run in group]
    protocol = {
        "command": command(options),
        "options": {k: v for k, v in asdict(options).items() if k not in {*HIDDEN, "figures", "store"}},
        "fresh_seeds": [FRESH, FRESH + options.report_seeds - 1],
        "environment": made_with(options.device),
        "trained_at_commits": sorted({str(run["commit"]) for run in runs}),
        "training_seconds": round(
            sum(found.seconds for found in study.found.values()) + sum(run["seconds"] for run in runs), 1
        ),
    }
    return store("peers", rounded(protocol), rounded(results), seconds, folder)


def command(options: Options) -> str:
    """The command line that gives the same, folders by other names."""
    words = ["python -m book.experiments.peers --out RUNS"]
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if option.name in {"out", "figures", "jobs"} or value == option.default:
            continue
        flag = f"--{option.name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words.append(" ".join((flag, *value)))
        else:
            words.append(f"{flag} {HIDDEN.get(option.name, value)}")
    return " ".join(words)
