"""A run from the first step, or from where it stopped, to its record."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llqr_sam_ref.train import checkpoint, record
from llqr_sam_ref.train.config import FREE, TrainConfig
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.display import Display
from llqr_sam_ref.train.loop import Trainer, averages
from llqr_sam_ref.train.ranks import Ranks, started
from llqr_sam_ref.train.sharpness import sharpness

LOG_EVERY = {"cpu": 10}  # steps; elsewhere 50, because looking waits for the device


class Stopped(Exception):  # noqa: N818  (an outcome, not an error)
    """The user, or the machine, asked the run to stop; its checkpoint is written."""


def train(
    config: TrainConfig, out: str | Path, *, arguments: Sequence[str] = (), resume: bool = False
) -> dict[str, Any]:
    """Train, or go on training, until the end, and write the record.

    A folder that has a checkpoint of the same settings is gone on with. Ctrl-C (once) and SIGTERM finish the step,
    write a checkpoint and raise ``Stopped``. A checkpoint that cannot be written is reported and training goes on;
    only the last one must succeed.

    Args:
        config: what the run is told.
        out: its folder: checkpoints, scalars, record, picture.
        arguments: of the command line, for the record.
        resume: insist that there is a checkpoint.

    Returns:
        The record.

    Raises:
        ValueError: settings that do not fit the data, the machine or the run that is in the folder.
        RuntimeError: the loss is not finite, or the record cannot be written.
        CheckpointError: no checkpoint can be read, or the last one not written.
        Stopped: it was asked to stop.
    """
    folder = Path(out)
    with started(config.machine) as ranks, _flags(config, ranks):
        saved = ranks.from_first(lambda: _saved(config, folder, resume))
        if config.data.download and ranks.count > 1:
            raise ValueError("download=True with several processes; fetch the data with a single one first.")
        dtype = torch.float64 if config.machine.precision == "float64" else torch.float32
        data = load_data(config.data, ranks.device, dtype, config.machine.workers)
        trainer = Trainer(config, data, ranks)
        return _Session(trainer, folder, saved).run(arguments)


class _Session:
    """The loop around the steps: epochs, checkpoints, signals."""

    def __init__(self, trainer: Trainer, folder: Path, saved: dict[str, Any] | None) -> None:
        self.trainer, self.folder, self.config = trainer, folder, trainer.config
        self.ranks: Ranks = trainer.ranks
        self.history: list[dict[str, Any]] = []
        self.before = self.train_before = 0.0  # seconds of earlier sessions, and of this epoch's steps
        self.saved_step = -1
        if saved is not None:
            trainer.load(saved)
            self.history, self.before = list(saved["history"]), saved["seconds"]
            self.train_before, self.saved_step = saved["train_seconds"], saved["step"]
        device = self.ranks.device.type
        self.log_every = self.config.watch.log_every or LOG_EVERY.get(device, 50)

    def run(self, arguments: Sequence[str]) -> dict[str, Any]:
        trainer, watch, first = self.trainer, self.config.watch, self.ranks.first
        self.start = self.epoch_start = time.perf_counter()
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
        show = {"bar": watch.progress and first, "scalars": watch.tensorboard and first}
        if (
            trainer.step == trainer.steps
        ):  # it was finished before, or stopped between its last step and its record
            known = self.ranks.from_first(lambda: _finished(self.folder))
            if known is None:
                return self._finish(arguments)
            if first:
                _warn(f"{self.folder} was finished before; pass another --out to train anew.")
            return known
        self.display = Display(self.folder, trainer.steps, trainer.step, **show)
        if first and 0 < trainer.step < trainer.steps:
            self.display.say(f"going on from step {trainer.step} of {trainer.steps}.")
        try:
            with _stop_requests() as requests:
                while trainer.step < trainer.steps:
                    trainer.train_step()
                    self._after_step(bool(requests))
        finally:
            self.display.close()
        return self._finish(arguments)

    def _after_step(self, stop: bool) -> None:
        trainer, every = self.trainer, self.config.watch.checkpoint_every
        looking = trainer.step % self.log_every == 0
        if looking:
            self._look()
        ended = trainer.step % trainer.steps_per_epoch == 0
        due = trainer.step % every == 0 if every else ended and trainer.step < trainer.steps
        if self.ranks.count > 1:
            stop = self.ranks.any(stop) if looking or ended else False
        if ended:
            self._check_finite()
            self._end_epoch(trainer.step // trainer.steps_per_epoch)
        if stop or due:
            self._check_finite()
            self._save(final=stop)
        if stop:
            raise Stopped(
                f"stopped after step {trainer.step} of {trainer.steps}; the same command goes on from "
                f"{self.folder / checkpoint.NAME}."
            )

    def _end_epoch(self, epoch: int) -> None:
        trainer, config = self.trainer, self.config
        train = averages(trainer.totals())  # waits for the device
        seconds = self.train_before + time.perf_counter() - self.epoch_start
        last = epoch == config.schedule.epochs
        test: dict[str, Any] = {"loss": None, "accuracy": None}
        if last or epoch % config.watch.eval_every == 0:
            test = trainer.evaluate()
        row = {
            "epoch": epoch,
            "step": trainer.step,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
            "radius": trainer.radius,
            "skipped_perturbations": trainer.skipped,
            "train_seconds": seconds,
            "per_second": trainer.examples_per_epoch / seconds,
            "seconds": self._seconds(),
        }
        self.history.append(row)
        if self.ranks.first:
            self.display.epoch(row, config.schedule.epochs, trainer.data.unit)
        trainer.reset_meters()
        self.train_before, self.epoch_start = 0.0, time.perf_counter()

    def _look(self) -> None:
        trainer = self.trainer
        sums = trainer.totals()
        if not bool(sums.isfinite().all()):
            self._check_finite()
        seconds = self.train_before + time.perf_counter() - self.epoch_start
        position = (trainer.step - 1) % trainer.steps_per_epoch + 1
        if self.ranks.first:
            rate = position / trainer.steps_per_epoch * trainer.examples_per_epoch / seconds
            values = {
                **averages(sums),
                "rate": rate,
                "radius": trainer.radius,
                "lr": trainer.optimizer.param_groups[0]["lr"],
            }
            self.display.step(trainer.step, values, trainer.data.unit)

    def _check_finite(self) -> None:
        if self.trainer.finite():
            return
        kept = (
            f"the checkpoint of step {self.saved_step} in {self.folder} is from before"
            if self.saved_step >= 0
            else "no checkpoint was written yet"
        )
        raise RuntimeError(
            f"the loss or a weight is not finite after step {self.trainer.step}; {kept}. Start anew in another folder "
            "with a lower lr or rho, with clip_norm, or in a wider precision."
        )

    def _save(self, *, final: bool) -> None:
        state = self.trainer.state()
        content = {
            **state,
            "config": self.config.flat(),
            "history": self.history,
            "seconds": self._seconds(),
            "train_seconds": self.train_before + time.perf_counter() - self.epoch_start,
        }
        if not self.ranks.first:
            return
        try:
            checkpoint.save(self.folder, content)
            self.saved_step = self.trainer.step
        except checkpoint.CheckpointError as error:
            if final:
                raise
            _warn(f"{error} Training goes on.")

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def _finish(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The record, its picture, the last checkpoint; a run that was finished before only shows them."""
        trainer = self.trainer
        if self.saved_step == trainer.steps and (self.folder / record.NAME).exists():
            return record.read(self.folder)
        result: dict[str, Any] = record.rounded(self._record(arguments))
        if self.ranks.first:
            record.write(self.folder, result)
            _draw(result, self.folder)
        self._save(final=True)
        return result

    def _record(self, arguments: Sequence[str]) -> dict[str, Any]:
        trainer, last = self.trainer, self.history[-1]
        rates = [row["per_second"] for row in self.history]
        steady = sorted(rates[1:] or rates)  # the first epoch warms up and compiles
        tested = [row for row in self.history if row["test_accuracy"] is not None]
        return {
            "command": record.command(arguments),
            "config": record.described(self.config),
            "seed": self.config.schedule.seed,
            **record.environment(self.ranks.device, self.ranks.count),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "examples": [trainer.data.train_size, trainer.data.test_size],
            "wall_seconds": self._seconds(),
            "result": {
                "accuracy": last["test_accuracy"],
                "loss": last["test_loss"],
                "best_accuracy": max(row["test_accuracy"] for row in tested),
                "train_loss": last["train_loss"],
                "per_second": steady[len(steady) // 2],
                "unit": trainer.data.unit,
            },
            "sharpness": self._sharpness(),
            "metrics": self.history,
        }

    def _sharpness(self) -> dict[str, Any] | None:
        trainer, watch = self.trainer, self.config.watch
        size = min(watch.sharpness_examples, trainer.data.train_size)
        if not size or not self.ranks.first or self.config.machine.parallel == "fsdp":
            return None
        draws = torch.full(
            (size, trainer.data.draws), 0.5
        )  # the middle of every draw: hardly any augmentation
        inputs, targets = trainer.data.train_batch(torch.arange(size), draws)
        try:
            values: dict[str, Any] = sharpness(
                trainer.model, trainer.loss_fn, inputs, targets, watch.sharpness_rho
            )
        except (ValueError, RuntimeError) as error:
            return {"error": str(error)}
        return {**values, "examples": size}


def _saved(config: TrainConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one, of the same run."""
    saved = checkpoint.load(folder, _warn)
    if saved is not None:
        _check_same(config, saved["config"], folder)
    elif resume:
        raise ValueError(
            f"resume=True but {folder} has no checkpoint; pass the folder of a run, or leave it out."
        )
    return saved


def _finished(folder: Path) -> dict[str, Any] | None:
    """The record of a run that was finished before."""
    return record.read(folder) if (folder / record.NAME).exists() else None


def _check_same(config: TrainConfig, saved: dict[str, Any], folder: Path) -> None:
    now = config.flat()
    different = [name for name in now if name not in FREE and now[name] != saved.get(name)]
    if different:
        listed = ", ".join(f"{name}={now[name]!r} (there {saved.get(name)!r})" for name in different)
        raise ValueError(
            f"{folder} holds another run: {listed}. Pass another --out, or the settings of that run."
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals that ask to stop; a second Ctrl-C interrupts at once."""
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _flags(config: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Global settings of torch that the run asks for, put back afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    try:
        if config.machine.deterministic:
            torch.use_deterministic_algorithms(True)
        if ranks.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.machine.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = config.machine.tf32
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolution


def _draw(result: dict[str, Any], folder: Path) -> None:
    try:
        from llqr_sam_ref.train.plots import draw
    except ImportError:
        _warn("no picture: matplotlib is not installed.")
        return
    draw({folder.name: result}, folder / "curves.png")


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
