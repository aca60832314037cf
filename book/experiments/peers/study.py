"""The stages: search, fresh seeds, cost. Every finished run is kept, so a study goes on wherever it was stopped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from book.experiments.peers.cost import seconds_per_step
from book.experiments.peers.ledger import Ledger
from book.experiments.peers.methods import METHODS
from book.experiments.peers.run import Setting, run
from book.experiments.peers.search import Axis, Point, Search
from book.experiments.peers.sources import fingerprint
from book.experiments.peers.tasks import TASKS, problem
from llqr_sam_ref.errors import check_choice, check_count
from llqr_sam_ref.train.provenance import environment

FRESH = 1000  # the first of the seeds that no setting was chosen by
DECAY = 0.125  # the weakest decay that is searched where the search begins without any, see ``Setting``
JUDGED = ("validation", "training")
Each = Callable[[Sequence[Callable[[], Any]]], Iterator[Any]]  # from some work to its results, in order


@dataclass(frozen=True)
class Options:
    """Command line of the study.

    Args:
        out: folder of the finished runs; the same folder goes on where it was stopped.
        tasks: which; all that need no ``data_path`` by default.
        methods: which.
        steps: of a run; None for what the task says.
        tune_seeds: tuning seeds; a setting is judged by the worst of them.
        report_seeds: fresh seeds for the report.
        trials: settings that every method tries at least.
        most_trials: settings that a method tries at most; the optimum may then lie at an edge, which is reported.
        judged: settings are chosen by the loss on "validation" examples, or by the "training" loss at the end.
        reference: the method that all others are compared with.
        jobs: processes, of one thread each.
        rounds: repeats of the timing, at least 2.
        device: cpu, cuda and the like.
        data_path: folder of Fashion-MNIST's four files, for the task of that name.
        store: write book/results/peers.json.
        figures: folder for one figure per task; None for none.
    """

    out: Path = Path("runs/peers")
    tasks: tuple[str, ...] = tuple(name for name, task in TASKS.items() if not task.external)
    methods: tuple[str, ...] = tuple(METHODS)
    steps: int | None = None
    tune_seeds: int = 5
    report_seeds: int = 10
    trials: int = 12
    most_trials: int = 30
    judged: str = "validation"
    reference: str = "llqr"
    jobs: int = 1
    rounds: int = 3
    device: str = "cpu"
    data_path: str | None = None
    store: bool = False
    figures: Path | None = None

    def __post_init__(self) -> None:
        for name in self.tasks:
            check_choice("tasks", name, TASKS)
            if TASKS[name].external and self.data_path is None:
                raise ValueError(f"the task {name} needs data_path; pass the folder of its files.")
        for name in self.methods:
            check_choice("methods", name, METHODS)
        check_choice("judged", self.judged, JUDGED)
        check_choice("reference", self.reference, self.methods)
        for name in ("tune_seeds", "report_seeds", "trials", "jobs"):
            check_count(name, getattr(self, name))
        check_count("most_trials", self.most_trials, low=self.trials)
        check_count("rounds", self.rounds, low=2)
        if self.steps is not None:
            check_count("steps", self.steps)

    def steps_of(self, task: str) -> int:
        """Steps of a run on a task."""
        return TASKS[task].steps if self.steps is None else self.steps

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All tasks with all methods."""
        return [(task, method) for task in self.tasks for method in self.methods]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        setting: the best.
        inner: whether it has worse neighbors on all sides.
        score: the worst loss of its tuning seeds.
        trials: settings that were tried.
        diverged: tuning runs that diverged, of all settings.
        runs: tuning runs that were made; settings that could not win any more were given up early.
        seconds: of these runs, of the process.
    """

    setting: Setting
    inner: bool
    score: float
    trials: int
    diverged: int
    runs: int
    seconds: float


@dataclass(frozen=True)
class Study:
    """What the stages gave, by task and method.

    Attributes:
        found: the searches.
        reports: the runs with fresh seeds.
        seconds: seconds per step of each repeat.
    """

    found: dict[tuple[str, str], Found]
    reports: dict[tuple[str, str], list[dict[str, Any]]]
    seconds: dict[tuple[str, str], list[float]]


@cache
def made_with(device: str) -> dict[str, Any]:
    """The commit, the versions and the machine."""
    here = environment(torch.device(device))
    return {**here, "versions": {**here["versions"], "pytorch_optimizer": version("pytorch_optimizer")}}


def trained(options: Options, task: str, method: str, setting: Setting, seed: int) -> dict[str, Any]:
    """A run, from the ledger if it is there; fresh seeds look at the test examples too."""
    steps = options.steps_of(task)
    key = {
        "task": task,
        "method": method,
        "setting": asdict(setting),
        "seed": seed,
        "steps": steps,
        "device": torch.device(options.device).type,
        "code": fingerprint(task, method),
    }

    def compute() -> dict[str, Any]:
        place = problem(task, options.data_path)
        return run(place, METHODS[method], setting, seed, steps, options.device, test=seed >= FRESH)

    entry = Ledger(options.out / "runs", partial(made_with, options.device)).entry(key, compute)
    return {**entry["result"], "commit": entry["provenance"]["commit"]}


def axes(task: str, method: str) -> tuple[Axis, Axis, Axis]:
    """Learning rate, decay, and the method's own parameter."""
    row, decay = METHODS[method], TASKS[task].decay
    shrinking = Axis(DECAY, low=0, off=True) if decay is None else Axis(decay)
    return Axis(row.lr), shrinking, Axis(row.start, below=row.below)


def searched(options: Options, least: int, pair: tuple[str, str]) -> Found:
    """The search of a method on a task, of at least so many settings."""
    task, method = pair
    seconds: list[float] = []

    def setting(point: Point) -> Setting:
        return Setting(*(axis.value(level) for axis, level in zip(axes(task, method), point, strict=True)))

    def loss(point: Point, seed: int) -> float:
        result = trained(options, task, method, setting(point), seed)
        seconds.append(result["seconds"])
        if result["diverged"]:
            return float("inf")
        return float(result["final"] if options.judged == "training" else result["validation"]["loss"])

    search = Search(axes(task, method), loss, range(options.tune_seeds), least, options.most_trials).run()
    diverged = sum(score.diverged for score in search.scores.values())
    score = search.scores[search.best].worst
    trials = len(search.scores)
    return Found(setting(search.best), search.inner, score, trials, diverged, len(seconds), sum(seconds))


def report(
    options: Options, settings: Mapping[tuple[str, str], Setting], steps: Mapping[str, int], each: Each
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs with fresh seeds.

    Args:
        options: the command line.
        settings: of each task and method.
        steps: of a run on each task.
        each: does some work, see ``processes``.

    Returns:
        The runs of each task and method, one per seed.
    """
    seeds = range(FRESH, FRESH + options.report_seeds)
    works = [
        partial(trained, replace(options, steps=steps[pair[0]]), *pair, setting, seed)
        for pair, setting in settings.items()
        for seed in seeds
    ]
    runs = iter(each(works))
    return {pair: [next(runs) for _ in seeds] for pair in settings}


def timed(options: Options, task: str, settings: Sequence[Setting]) -> dict[str, list[float]]:
    """Seconds per step on a task, all methods in turn."""
    key = {
        "task": task,
        "method": "timing",
        "settings": [asdict(setting) for setting in settings],
        "methods": list(options.methods),
        "rounds": options.rounds,
        "steps": options.steps_of(task),
        "device": options.device,
        "code": [fingerprint(task, method) for method in options.methods],
    }

    def compute() -> dict[str, list[float]]:
        rows = {m: (METHODS[m], s) for m, s in zip(options.methods, settings, strict=True)}
        place = problem(task, options.data_path)
        return seconds_per_step(place, rows, options.steps_of(task), options.rounds, options.device)

    entry = Ledger(options.out / "timing", partial(made_with, options.device)).entry(key, compute)
    return entry["result"]  # type: ignore[no-any-return]


def study(options: Options, say: Callable[[str], object] = print) -> Study:
    """All stages.

    Args:
        options: the command line.
        say: is told of the progress.

    Returns:
        What they gave.
    """
    with processes(options.jobs) as each:
        found: dict[tuple[str, str], Found] = {}
        due = dict.fromkeys(options.pairs, options.trials)
        while due:
            # A method that went on to find an inner optimum raises the budget of all others on the task.
            searches = [partial(searched, options, least, pair) for pair, least in due.items()]
            for pair, result in zip(due, each(searches), strict=True):
                found[pair] = result
                say(_line(pair, result))
            budget = {t: max(found[t, m].trials for m in options.methods) for t in options.tasks}
            due = {pair: budget[pair[0]] for pair in options.pairs if found[pair].trials < budget[pair[0]]}
        steps = {task: options.steps_of(task) for task in options.tasks}
        reports = report(options, {pair: found[pair].setting for pair in options.pairs}, steps, each)
    for pair, runs in reports.items():
        losses = " ".join(f"{result['final']:.4g}" for result in runs)
        say(f"{pair[0]:17} {pair[1]:15} fresh seeds: training loss {losses}")
    seconds: dict[tuple[str, str], list[float]] = {}
    for task in options.tasks:  # with nobody beside: what runs at the same time would be timed too
        per_step = timed(options, task, [found[task, method].setting for method in options.methods])
        seconds |= {(task, method): per_step[method] for method in options.methods}
        say(f"{task:17} timed")
    return Study(found, reports, seconds)


def _line(pair: tuple[str, str], result: Found) -> str:
    at = result.setting
    return (
        f"{pair[0]:17} {pair[1]:15} lr {at.lr:<9.3g} decay {at.decay:<6g} own {at.own:<9.3g} "
        f"score {result.score:<9.4g} {result.trials} settings{'' if result.inner else ', AT AN EDGE'}"
    )


@contextmanager
def processes(jobs: int) -> Iterator[Each]:
    """So many processes of one thread each; for one, this one.

    Args:
        jobs: how many.

    Yields:
        A function from some work to its results, in order.
    """
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda works: (work() for work in works)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork of a process that used an accelerator cannot use it
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield lambda works: (future.result() for future in [pool.submit(work) for work in works])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
