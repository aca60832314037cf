"""The same training on one process and on several: what is the same, and what is another algorithm.

    python -m book.experiments.machines_workers --out RUNS              a few minutes on two cores, gloo

Every row is the training command, plainly or under torchrun, on the same global batches in float64; its weights at
the end are compared with those of the row's one-process run. Writes book/results/machines_workers.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from book.experiments.bench import Options as Machine
from book.experiments.bench import environment
from book.experiments.store import RESULTS, ROOT, store
from llqr_sam_ref.train import checkpoint, record

COMMON = (
    *("--preset", "digits-resnet", "--precision", "float64", "--device", "cpu"),
    *("--no-progress", "--no-tensorboard", "--sharpness-examples", "0"),
)
BATCH_NORM = ("--model-args", "width=8", "norm=batch", "depths=1,1,1")


@dataclass(frozen=True)
class Options:
    """Command line of the comparison.

    Args:
        out: folder of the runs.
        epochs: of every run.
        train_examples: of every run.
        processes: numbers of processes to compare with one.
        results: where the JSON goes; None for book/results.
    """

    out: Path
    epochs: int = 2
    train_examples: int = 1000
    processes: tuple[int, ...] = (2, 4)
    results: Path | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        what: in words.
        method: the optimizer.
        words: more of the training command.
    """

    what: str
    method: str
    words: tuple[str, ...] = ()


CASES = (
    Case("SAM, one perturbation for all", "sam"),
    Case("LLQR+SAM published", "llqr-published-sam"),
    Case("LLQR+SAM sampled", "llqr-sampled-sam"),
    Case("SAM, a perturbation for each worker", "sam", ("--own-perturbation",)),
    Case("SAM, batch norm", "sam", BATCH_NORM),
)


def train(options: Options, case: Case, processes: int) -> Path:
    """Run the training command, unless its folder is there; the folder."""
    folder = options.out / f"{'-'.join((case.method, *case.words)).replace('=', '')}-{processes}"
    if (folder / record.NAME).exists():
        return folder
    words = ["-m", "llqr_sam_ref", "train", *COMMON, "--optimizer", case.method, *case.words]
    words += ["--epochs", str(options.epochs), "--train-examples", str(options.train_examples)]
    words += ["--out", str(folder)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launch([sys.executable, *(launcher if processes > 1 else ()), *words])
    return folder


def launch(command: list[str]) -> None:
    """Run a command, one thread a process."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env={**os.environ, **threads}, check=True, timeout=600)


def model_of(folder: Path) -> Tensor:
    """All trained numbers of a run in a row; running statistics are not trained."""
    saved = checkpoint.read(folder / checkpoint.NAME)["model"]
    return torch.cat([
        t.flatten() for name, t in saved.items() if "running" not in name and t.is_floating_point()
    ])


def compared(options: Options, case: Case) -> list[dict[str, Any]]:
    """The rows of a case."""
    alone = train(
        options, Case("", case.method, tuple(w for w in case.words if w != "--own-perturbation")), 1
    )
    reference = model_of(alone)
    rows = []
    for count in (1, *options.processes):
        folder = alone if count == 1 else train(options, case, count)
        found, weights = record.read(folder), model_of(folder)
        gap = weights - reference
        rows.append({
            "what": case.what,
            "processes": count,
            "largest_difference": float(gap.abs().max()),
            "relative_difference": float(gap.norm() / reference.norm()),
            "accuracy": found["result"]["accuracy"],
            "train_loss": found["result"]["train_loss"],
            "radius": found["metrics"][-1]["radius"],
            "command": found["command"],
        })
    return rows


def main(options: Options) -> Path:
    """Train, compare, store."""
    start = time.perf_counter()
    rows = [row for case in CASES for row in compared(options, case)]
    for row in rows:
        print(
            f"{row['what']:40s}{row['processes']:3d}{row['largest_difference']:10.1e}{row['accuracy']:8.4f}"
        )
    protocol = {
        "command": "python -m book.experiments.machines_workers --out RUNS",
        "environment": environment(Machine()),
        "seed": 0,
    }
    seconds = time.perf_counter() - start
    return store("machines_workers", protocol, {"rows": rows}, seconds, options.results or RESULTS)


if __name__ == "__main__":
    main(tyro.cli(Options))
