"""The stages: a grid for every method, fresh seeds for its best settings, and a sweep over the radius."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_rel

from book.experiments.alignment import captions, data, train
from book.experiments.alignment.data import Data
from book.experiments.alignment.train import Setting, results
from book.experiments.peers.compare import holm
from book.experiments.peers.ledger import Ledger
from book.experiments.peers.sources import digest
from book.experiments.peers.study import processes
from llqr_sam_ref.train.provenance import environment

STEPS, SHARES = 400, (0.0, 0.4)
TUNING_SEEDS, FRESH_SEEDS = tuple(range(5)), tuple(range(100, 110))
FIRST, PASSED = 2, 12  # tuning seeds that all settings are tried with; settings that are tried with the rest
CRITERIA = ("alignment", "recall_5")
AT_ONCE = 24  # runs
RATES, DECAYS = (1e-3, 3e-3, 1e-2), (1.0, 4.0, 16.0, 64.0)
RADII = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
ALONE = [
    Setting(lr, wd)
    for lr, wd in itertools.product(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0),
    )
]
GRIDS = {
    "adamw": ALONE,
    "adamw, twice the steps": ALONE,
    "sam": [Setting(*point) for point in itertools.product(RATES, DECAYS, RADII)],
    "m-sam": [Setting(lr, wd, 2 * rho, 1.0) for lr, wd, rho in itertools.product(RATES, DECAYS, RADII)],
}
STRETCH = {"adamw, twice the steps": 2}
PAIRS = (
    ("m-sam", "sam"),
    ("sam", "adamw"),
    ("m-sam", "adamw"),
    ("sam", "adamw, twice the steps"),
    ("m-sam", "adamw, twice the steps"),
)
SWEPT = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
COMMON = (3e-3, 4.0)  # learning rate and decay of the sweep
Runs = Sequence[tuple[Setting, int]]


@dataclass(frozen=True)
class Options:
    """Command line of the study.

    Args:
        data_path: folder of Fashion-MNIST's four files.
        captions: the file of the captions' vectors.
        out: folder of finished parts; the same folder goes on where it was stopped.
        processes: of one thread each.
        device: cpu, cuda and the like.
        store: write book/results/alignment.json.
        quick: sizes at which numbers mean nothing: does it run?
    """

    data_path: str
    captions: Path
    out: Path = Path("runs/alignment")
    processes: int = 1
    device: str = "cpu"
    store: bool = False
    quick: bool = False

    @property
    def steps(self) -> int:
        """Of a run with nothing said."""
        return 20 if self.quick else STEPS

    @property
    def shares(self) -> tuple[float, ...]:
        """Of mismatched pairs."""
        return SHARES[-1:] if self.quick else SHARES


@cache
def loaded(data_path: str, path: Path) -> Data:
    """The data, once per process."""
    return data.load(data_path, captions.read(path)[0])


def part(options: Options, share: float, method: str, runs: Runs, test: bool) -> list[dict[str, float]]:
    """What some runs end with, from the folder if it is there."""
    key: dict[str, Any] = {
        "task": f"share {share:g}",
        "method": method,
        "runs": [[*setting, seed] for setting, seed in runs],
        "steps": options.steps * STRETCH.get(method, 1),
        "test": test,
        "device": torch.device(options.device).type,
        "code": digest(captions.__file__, data.__file__, train.__file__),
    }

    def compute() -> dict[str, list[float]]:
        found = results(
            runs,
            share,
            key["steps"],
            loaded(options.data_path, options.captions),
            test=test,
            device=options.device,
        )
        return {name: values.tolist() for name, values in found._asdict().items()}

    here = partial(environment, torch.device(options.device))
    columns = Ledger(options.out, here).entry(key, compute)["result"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


Ask = tuple[float, str, tuple[tuple[Setting, int], ...], bool]


class Study:
    """All runs, made when they are asked for.

    Args:
        options: the command line.
        each: from some work to its results, in order.
        say: is told of the progress.
    """

    def __init__(
        self,
        options: Options,
        each: Callable[[Sequence[Callable[[], Any]]], Iterator[Any]],
        say: Callable[[str], object],
    ) -> None:
        self.options, self.each, self.say = options, each, say

    def made(self, asked: Mapping[Any, tuple[float, str, Runs, bool]]) -> dict[Any, list[dict[str, float]]]:
        """The rows of each list of runs; lists are cut into pieces that train at once."""
        pieces = [
            (name, partial(part, self.options, share, method, tuple(runs[i : i + AT_ONCE]), test))
            for name, (share, method, runs, test) in asked.items()
            for i in range(0, len(runs), AT_ONCE)
        ]
        rows: dict[Any, list[dict[str, float]]] = {name: [] for name in asked}
        for count, ((name, _), found) in enumerate(
            zip(pieces, self.each([work for _, work in pieces]), strict=True), start=1
        ):
            rows[name] += found
            self.say(f"{count} of {len(pieces)} parts")
        return rows

    def tuned(self) -> dict[tuple[float, str], dict[Setting, list[dict[str, float]]]]:
        """Per share and method the settings with their tuning runs: all with the first seeds, the best with all."""
        grids = {name: grid[:: 12 if self.options.quick else 1] for name, grid in GRIDS.items()}
        pairs = list(itertools.product(self.options.shares, grids))
        first = self.made({
            pair: (*pair, [(s, seed) for s in grids[pair[1]] for seed in TUNING_SEEDS[:FIRST]], False)
            for pair in pairs
        })
        table = {pair: _by_setting(grids[pair[1]], rows) for pair, rows in first.items()}
        passed = {
            pair: list(dict.fromkeys(s for by in CRITERIA for s in ranked(rows, by)[:PASSED]))
            for pair, rows in table.items()
        }
        rest = self.made({
            pair: (*pair, [(s, seed) for s in settings for seed in TUNING_SEEDS[FIRST:]], False)
            for pair, settings in passed.items()
        })
        for pair, rows in rest.items():
            for setting, more in _by_setting(passed[pair], rows).items():
                table[pair][setting] += more
        return table

    def fresh(self, best: Mapping[Any, Setting]) -> dict[Any, list[dict[str, float]]]:
        """The best settings, by (share, method, ...), with fresh seeds, on the test pictures."""
        return self.made({
            name: (*name[:2], [(setting, seed) for seed in FRESH_SEEDS], True)
            for name, setting in best.items()
        })

    def sweep(self) -> dict[tuple[float, str, float], list[dict[str, float]]]:
        """SAM and M-SAM over the radius, from one setting of the rest, with fresh seeds, on the test pictures."""
        swept = SWEPT[::4] if self.options.quick else SWEPT
        return self.fresh({
            (share, method, rho): Setting(*COMMON, rho, float(method == "m-sam"))
            for share in self.options.shares
            for method in ("sam", "m-sam")
            for rho in swept
        })


def _by_setting(
    grid: Sequence[Setting], rows: list[dict[str, float]]
) -> dict[Setting, list[dict[str, float]]]:
    each = len(rows) // len(grid)
    return {setting: rows[i * each : (i + 1) * each] for i, setting in enumerate(grid)}


def ranked(table: Mapping[Setting, list[dict[str, float]]], by: str) -> list[Setting]:
    """Settings with as many seeds as any has, by their worst seed, the best first."""
    most = max(map(len, table.values()))
    whole = [setting for setting, rows in table.items() if len(rows) == most]
    return sorted(whole, key=lambda setting: -min(row[by] for row in table[setting]))


def at_edge(grid: Sequence[Setting], best: Setting) -> list[str]:
    """The axes on which the best setting has no neighbor on one side."""
    axes = {name: sorted({getattr(s, name) for s in grid}) for name in ("lr", "wd", "rho")}
    return [
        name
        for name, values in axes.items()
        if len(values) > 1 and getattr(best, name) in (values[0], values[-1])
    ]


def compared(fresh: Mapping[tuple[float, str, str], list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Pairs of methods, each chosen by what is compared, seed by seed; p-values corrected for all of a criterion."""
    rows: list[dict[str, Any]] = []
    for by in CRITERIA:
        of_this: list[dict[str, Any]] = []
        for share, (one, other) in itertools.product(sorted({s for s, _, _ in fresh}), PAIRS):
            a, b = (np.array([row[by] for row in fresh[share, name, by]]) for name in (one, other))
            of_this.append({
                "what": f"{by} {share:g}: {one} over {other}",
                "lead": float((a - b).mean()),
                "spread": float((a - b).std(ddof=1)),
                "ahead": int((a > b).sum()),
                "p": float(ttest_rel(a, b).pvalue) if np.ptp(a - b) else 1.0,
            })
        for row, p in zip(of_this, holm([row["p"] for row in of_this]), strict=True):
            rows.append({**row, "p_corrected": p})
    return rows


def study(options: Options, say: Callable[[str], object] = print) -> dict[str, Any]:
    """All stages, as they are stored.

    Args:
        options: the command line.
        say: is told of the progress.

    Returns:
        {"tuning", "fresh", "compared", "sweep", "untrained"}.
    """
    with processes(options.processes) as each:
        stages = Study(options, each, say)
        table = stages.tuned()
        best = {(*pair, by): ranked(rows, by)[0] for pair, rows in table.items() for by in CRITERIA}
        fresh = stages.fresh(best)
        swept = stages.sweep()
    tuning = {
        f"{share:g}": {
            method: [
                {**setting._asdict(), **{by: [row[by] for row in rows] for by in CRITERIA}}
                for setting, rows in table[share, method].items()
            ]
            for method in GRIDS
        }
        for share in options.shares
    }
    return {
        "untrained": untrained(options),
        "tuning": tuning,
        "fresh": {
            f"{share:g}": {
                by: {
                    method: {
                        "setting": best[share, method, by]._asdict(),
                        "edge": at_edge(GRIDS[method], best[share, method, by]),
                        **_columns(fresh[share, method, by]),
                    }
                    for method in GRIDS
                }
                for by in CRITERIA
            }
            for share in options.shares
        },
        "compared": compared(fresh),
        "sweep": {
            f"{share:g}": {
                method: [
                    {"rho": rho, **_columns(rows)}
                    for (s, m, rho), rows in swept.items()
                    if (s, m) == (share, method)
                ]
                for method in ("sam", "m-sam")
            }
            for share in options.shares
        },
    }


def untrained(options: Options) -> dict[str, list[float]]:
    """What the towers align before the first step, with the fresh seeds."""
    all_data = loaded(options.data_path, options.captions)
    weights = [torch.stack(w) for w in zip(*map(train.initial_weights, FRESH_SEEDS), strict=True)]
    return {k: v.tolist() for k, v in train.measured(weights, all_data.test, all_data.vectors).items()}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
