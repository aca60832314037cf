"""ResNet-18 on Fashion-MNIST: every method under the same budget, several seeds; and what each costs.

    python -m book.experiments.fashion_resnet18 --data-path DATA --out RUNS            hours on a CPU: for a GPU
    python -m book.experiments.fashion_resnet18 --data-path DATA --out RUNS --small    a quarter of an hour on one core

Every method tries the same number of settings on the same subset with one seed (a grid of four; methods with a
radius spend it on two rates times two radii), the best is trained in full with every seed. Everything is trained by
`python -m llqr_sam_ref train`'s own loop, in folders below RUNS: stopped at any point, the same command goes on.
The small version trains ResNet-8 on a subset and measures throughputs by interleaved repeats, on the process's own
clock. Writes book/results/fashion_resnet18.json, or fashion_resnet8.json for the small one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from book.experiments.bench import Options as Machine
from book.experiments.bench import environment
from book.experiments.store import RESULTS, store
from book.experiments.timing import Claim, Seconds, Stopwatch, table
from llqr_sam_ref.optim import LLQR, SAM
from llqr_sam_ref.train.compare import time_to
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.loop import Trainer
from llqr_sam_ref.train.methods import METHODS as TABLE
from llqr_sam_ref.train.presets import configured
from llqr_sam_ref.train.ranks import RunRanks, device_of
from llqr_sam_ref.train.run import train

METHODS = (
    *("sgd", "llqr", "sam", "llqr-sam", "muon", "adamw", "m-sam"),
    *("llqr-published", "llqr-sampled", "llqr-published-sam", "llqr-sampled-sam"),
)
FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the preset's learning rate
RADII = (0.05, 0.1)
CYCLE = 50  # steps in which the sampled LLQR refits five times, once with new bases


@dataclass(frozen=True)
class Options:
    """Command line of the study.

    Args:
        data_path: folder of Fashion-MNIST's four files.
        out: folder of the runs.
        small: ResNet-8 on a subset, and throughputs on the process's clock.
        epochs: of a full run; None for 15, or 3 when small.
        tune_epochs: of a tuning run.
        seeds: full runs of every method; None for 5, or 2 when small.
        methods: which.
        rounds: repeats of the throughput measurement.
        jobs: runs side by side, one process each; a card that waits for launches has room for several. Throughputs
            are measured alone, before; the images per second of the runs are then those of shared hardware.
        device: auto, cpu, cuda and the like.
        results: where the JSON goes; None for book/results.
        smoke: sizes at which numbers mean nothing: does it run?
    """

    data_path: str
    out: Path
    small: bool = False
    epochs: int | None = None
    tune_epochs: int = 2
    seeds: int | None = None
    methods: tuple[str, ...] = METHODS
    rounds: int = 5
    jobs: int = 1
    device: str = "auto"
    results: Path | None = None
    smoke: bool = False

    @property
    def name(self) -> str:
        """Of the JSON file."""
        return "fashion_resnet8" if self.small else "fashion_resnet18"

    @property
    def all_seeds(self) -> range:
        """Of the full runs."""
        return range(self.seeds or (2 if self.small else 5))

    def config(self, method: str, **settings: Any) -> TrainConfig:
        """What all runs of a method have in common."""
        common: dict[str, Any] = {
            "data_path": self.data_path,
            "device": self.device,
            "progress": False,
            "tensorboard": False,
            "epochs": self.epochs or (3 if self.small else 15),
        }
        if self.small:
            common |= {"train_examples": 5000, "test_examples": 2000}
        if self.smoke:
            common |= {"train_examples": 64, "test_examples": 32, "batch_size": 32}
            common |= {"probe_size": 32} if "probe_size" in TABLE[method].reads else {}
            common |= {"model": "resnet", "model_args": ("width=4", "depths=1"), "warmup": "0"}
            common |= {"precision": "float32", "sharpness_examples": 8}
        preset = "fashion-resnet8" if self.small else "fashion-resnet18"
        return configured(preset, method).replace(**{**common, **settings})


def candidates(options: Options, method: str) -> list[dict[str, Any]]:
    """Four settings of a method around its preset."""
    lr = options.config(method).optimizer.lr
    if not TABLE[method].perturbs:
        return [{"lr": factor * lr} for factor in FACTORS]
    return [{"lr": f * lr, "rho": rho} for f, rho in itertools.product((0.5, 1.0), RADII)]


def tuned(options: Options, method: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best of a method's candidates after a short run on a subset, and all of them.

    They are judged on training images that are held out; the tuning seed is none of the full runs'.
    """
    tried = []
    sizes = (64, 20) if options.smoke else (2500, 2000) if options.small else (15000, 5000)
    subset = {"train_examples": sizes[0], "holdout": sizes[1]}
    for number, settings in enumerate(candidates(options, method)):
        short = {"epochs": options.tune_epochs, "seed": 1000, "sharpness_examples": 0, **subset}
        config = options.config(method, **{**short, **settings})
        folder = options.out / "tuning" / method / str(number)
        try:
            accuracy = train(config, folder)["result"]["accuracy"]
        except RuntimeError as error:  # it diverged
            print(f"{method} {settings}: {error}")
            accuracy = 0.0
        tried.append({**settings, "accuracy": accuracy})
    best = max(tried, key=lambda row: row["accuracy"])
    return {name: value for name, value in best.items() if name != "accuracy"}, tried


def full_run(options: Options, settings: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    """What a seed gave."""
    return train(options.config(method, seed=seed, **settings), options.out / "full" / method / str(seed))


def full_runs(options: Options, method: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What every seed gave."""
    return [full_run(options, settings, method, seed) for seed in options.all_seeds]


def side_by_side(options: Options) -> None:
    """All runs, several at a time. They are kept in their folders, where whoever asks next finds them."""
    context = multiprocessing.get_context("spawn")  # a fork of a process that used a card cannot use it
    with ProcessPoolExecutor(options.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        chosen = dict(zip(options.methods, pool.map(partial(tuned, options), options.methods), strict=True))
        runs = [
            pool.submit(full_run, options, chosen[method][0], method, seed)
            for seed, method in itertools.product(options.all_seeds, options.methods)
        ]
        for run in runs:
            run.result()


def summary(runs: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """Accuracy, speed and time of a method's runs."""
    accuracies = [run["result"]["accuracy"] for run in runs]
    eigenvalues = [(run["sharpness"] or {}).get("top_eigenvalue") for run in runs]
    return {
        "accuracies": accuracies,
        "accuracy": statistics.fmean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "images_per_second": statistics.median(run["result"]["per_second"] for run in runs),
        "seconds_to_target": [time_to(run, target) for run in runs],
        "epochs_to_target": [time_to(run, target, "epoch") for run in runs],
        "top_eigenvalues": eigenvalues,
        "curves": [
            [
                [row["epoch"], row["seconds"], row["train_loss"], row["test_accuracy"]]
                for row in run["metrics"]
            ]
            for run in runs
        ],
    }


# Throughput.


def throughputs(options: Options, watch: Stopwatch) -> list[dict[str, Any]]:
    """Ratios of throughputs to SGD's: the same loop, the same batches, one method after the other in turn."""
    trainers = {
        name: _trainer(options, name)
        for name in (
            *("sgd", "muon", "sam", "llqr", "llqr-sam"),
            *("llqr-sampled", "llqr-published-sam", "llqr-sampled-sam"),
        )
    }
    steps = 2 if options.smoke else CYCLE

    def run(name: str, count: int) -> Any:
        def work() -> None:
            for _ in range(count):
                trainers[name].train_step()

        return work

    cycles = {name: run(name, steps) for name in trainers}
    published = trainers["llqr-published-sam"]
    llqr = next(part for part in _stack(published.optimizer) if isinstance(part, LLQR))
    # The first step refits; the next is 1000 steps away, so refits are measured apart and divided among the steps.
    Stopwatch(watch.device).run({**cycles, "refit": lambda: llqr.refit(*published.probe())}, 1)
    watch.run({**cycles, "refit": lambda: llqr.refit(*published.probe())}, options.rounds)

    def ratio(name: str) -> Any:
        def value(t: Seconds) -> float:
            extra = t["refit"] * steps / llqr.config.every if "published" in name else 0.0
            return t["sgd"] / (t[name] + extra)

        return value

    claims = [
        Claim("SAM / SGD, images per second", ratio("sam"), at_least=0.48, limit="0.50"),
        Claim("LLQR+SAM published / SGD", ratio("llqr-published-sam"), at_least=0.44, limit="0.48"),
        Claim("Muon / SGD", ratio("muon")),
        Claim("LLQR / SGD", ratio("llqr"), at_least=0.8, limit="0.80"),
        Claim("LLQR+SAM / SGD", ratio("llqr-sam")),
        Claim("LLQR sampled / SGD", ratio("llqr-sampled"), at_least=0.8, limit="0.91"),
        Claim("LLQR+SAM sampled / SGD", ratio("llqr-sampled-sam")),
    ]
    return [claim.row(watch) for claim in claims]


def _trainer(options: Options, method: str) -> Trainer:
    """A trainer in the middle of a long run: no evaluation, no checkpoints."""
    config = options.config(method, epochs=1000, warmup="0")
    device = device_of(config.machine.device)
    return Trainer(config, load_data(config.data, device), RunRanks(device=device))


def _stack(optimizer: Any) -> list[Any]:
    return [optimizer, optimizer.base] if isinstance(optimizer, SAM) else [optimizer]


def main(options: Options) -> Path:
    """Tune, train, measure, print, store."""
    start = time.perf_counter()
    device = str(device_of(options.device))
    if device == "cpu":
        torch.set_num_threads(1)
    watch = Stopwatch("cpu" if device == "cpu" else "accelerator")
    rows = throughputs(options, watch)
    print(table(rows), flush=True)
    results: dict[str, Any] = {"throughput": rows, "seconds": watch.seconds, "tuning": {}, "methods": {}}
    words = ["python -m book.experiments.fashion_resnet18 --data-path DATA --out RUNS"]
    words += [flag for flag, on in (("--small", options.small), ("--smoke", options.smoke)) if on]
    words += [f"--{name} {value}" for name in ("epochs", "seeds") if (value := getattr(options, name))]
    words += [f"--tune-epochs {options.tune_epochs}", f"--methods {' '.join(options.methods)}"]
    words += [f"--jobs {options.jobs}"] if options.jobs > 1 else []
    one = options.config("sgd")
    protocol = {
        "command": " ".join(words),
        "environment": environment(Machine(device=device)),
        "seeds": len(options.all_seeds),
        "config": {k: v for k, v in one.flat().items() if k not in {"data_path", "lr", "optimizer", "seed"}},
    }
    if options.jobs > 1:
        side_by_side(options)
    runs: dict[str, list[dict[str, Any]]] = {}
    for method in options.methods:
        settings, tried = tuned(options, method)
        results["tuning"][method] = {"tried": tried, "chosen": settings}
        runs[method] = full_runs(options, method, settings)
        target = min(statistics.fmean(r["result"]["accuracy"] for r in group) for group in runs.values())
        results |= {
            "target": target,
            "methods": {name: summary(group, target) for name, group in runs.items()},
        }
        line = results["methods"][method]
        print(f"{method:20s} {line['accuracy']:.4f}  {line['images_per_second']:.0f} images/s", flush=True)
        protocol["trained_at_commits"] = sorted({str(r["commit"]) for group in runs.values() for r in group})
        place = options.results or RESULTS  # after every method: what is done is kept, whatever comes
        path = store(options.name, protocol, results, time.perf_counter() - start, place)
    return path


if __name__ == "__main__":
    main(tyro.cli(Options))
