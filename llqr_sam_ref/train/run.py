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

from llqr_sam_ref.errors import RunError, UserError
from llqr_sam_ref.train import checkpoint, provenance, record
from llqr_sam_ref.train.config import TrainConfig
from llqr_sam_ref.train.data import load_data
from llqr_sam_ref.train.display import Display
from llqr_sam_ref.train.earlier import as_now, differences
from llqr_sam_ref.train.loop import Trainer, averages
from llqr_sam_ref.train.ranks import RunRanks, started
from llqr_sam_ref.train.sharpness import sharpness

LOG_EVERY = {"cpu": 10}  # steps; elsewhere 50, because looking waits for the device


class Stopped(Exception):  # noqa: N818  (an outcome, not an error)
    """The user, or the machine, asked the run to stop; its checkpoint is written."""


def train(
    config: TrainConfig, out: str | Path, *, arguments: Sequence[str] = (), resume: bool = False
) -> dict[str, Any]:
    """Train, or go on training, until the end, and write the record.

    A folder that has a checkpoint of the same settings is gone on with; if it has the record of the same settings too,
    the run was finished before, and the record is returned. Ctrl-C (once) and SIGTERM finish the step,
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
        UserError: settings that do not fit the data, the machine or the run that is in the folder.
        RunError: the loss is not finite, or the folder or the record cannot be written.
        CheckpointError: no checkpoint can be read, or the last one not written.
        Stopped: it was asked to stop.
    """
    folder = Path(out)
    with started(config.machine) as ranks, _flags(config, ranks):
        saved, finished = ranks.from_first(lambda: _standing(config, folder, resume))
        if finished is not None:
            if ranks.first:
                _warn(f"{folder} was finished before; pass another --out to train anew.")
            return finished
        if config.data.download and ranks.world_size > 1:
            raise UserError("download=True with several processes; fetch the data with a single one first.")
        dtype = torch.float64 if config.machine.precision == "float64" else torch.float32
        data = ranks.on_all(lambda: load_data(config.data, ranks.device, dtype, config.machine.workers))
        trainer = Trainer(config, data, ranks)
        return _Session(trainer, folder, saved).run(arguments)


class _Session:
    """The loop around the steps: epochs, checkpoints, signals."""

    def __init__(self, trainer: Trainer, folder: Path, saved: dict[str, Any] | None) -> None:
        self.trainer, self.folder, self.config = trainer, folder, trainer.config
        self.ranks: RunRanks = trainer.ranks
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
        self.start = self.epoch_start = time.perf_counter()
        self.ranks.from_first(lambda: _make(self.folder))
        if self.trainer.step < self.trainer.steps:  # else it was stopped between its last step and its record
            self._train()
        return self._finish(arguments)

    def _train(self) -> None:
        trainer, watch, first = self.trainer, self.config.watch, self.ranks.first
        show = {"bar": watch.progress and first, "scalars": watch.tensorboard and first}
        self.display = Display(self.folder, trainer.steps, trainer.step, **show)
        if first and trainer.step:
            self.display.say(f"going on from step {trainer.step} of {trainer.steps}.")
        try:
            with _stop_requests() as requests:
                while trainer.step < trainer.steps:
                    trainer.train_step()
                    self._after_step(bool(requests))
        finally:
            self.display.close()

    def _after_step(self, stop: bool) -> None:
        trainer, every = self.trainer, self.config.watch.checkpoint_every
        looking = trainer.step % self.log_every == 0
        if looking:
            self._look()
        ended = trainer.step % trainer.steps_per_epoch == 0
        due = trainer.step % every == 0 if every else ended and trainer.step < trainer.steps
        if self.ranks.world_size > 1:
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
        raise RunError(
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
        try:  # that there is a checkpoint, or not, is known on all ranks
            self.ranks.from_first(lambda: checkpoint.save(self.folder, content))
            self.saved_step = self.trainer.step
        except checkpoint.CheckpointError as error:
            if final:
                raise
            if self.ranks.first:
                _warn(f"{error} Training goes on.")

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def _finish(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The record, its picture, and the last checkpoint."""
        result = self.ranks.from_first(lambda: self._written(arguments))
        self._save(final=True)
        return result

    def _written(self, arguments: Sequence[str]) -> dict[str, Any]:
        result: dict[str, Any] = record.rounded(self._record(arguments))
        record.write(self.folder, result)
        _draw(result, self.folder)
        return result

    def _record(self, arguments: Sequence[str]) -> dict[str, Any]:
        trainer, last = self.trainer, self.history[-1]
        rates = [row["per_second"] for row in self.history]
        steady = sorted(rates[1:] or rates)  # the first epoch warms up and compiles
        tested = [row for row in self.history if row["test_accuracy"] is not None]
        return {
            "command": provenance.command(arguments),
            "version": checkpoint.VERSION,
            "config": record.described(self.config),
            "seed": self.config.schedule.seed,
            **provenance.environment(self.ranks.device, self.ranks.world_size),
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
        if not size or self.config.machine.parallel == "fsdp":
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


def _standing(
    config: TrainConfig, folder: Path, resume: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The checkpoint of this run that is in the folder, and the record, if the run was finished.

    Returns:
        The two, None for what is not there.

    Raises:
        UserError: there is a checkpoint or a record of another run, or none to go on from.
    """
    saved = checkpoint.load(folder, _warn)
    if saved is not None:
        before = as_now(saved["config"], folder / checkpoint.NAME, saved.get("version", 1))
        _check_same(config.flat(), before.flat(), folder)
    elif resume:
        raise UserError(
            f"resume=True but {folder} has no checkpoint; pass the folder of a run, or leave it out."
        )
    if not (folder / record.NAME).exists():
        return saved, None
    known = record.read(folder)
    before = as_now(known["config"], folder / record.NAME, known.get("version", 1))
    _check_same(record.rounded(config.flat()), record.rounded(before.flat()), folder)
    last = known["metrics"][-1]["step"]
    # The record is written before the last checkpoint: without that one the last steps are taken again.
    return saved, known if saved is None or saved["step"] >= last else None


def _check_same(now: dict[str, Any], before: dict[str, Any], folder: Path) -> None:
    if different := differences(now, before):
        raise UserError(
            f"{folder} holds another run: {different}. Pass another --out, or the settings of that run."
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out={str(folder)!r} cannot be made a folder ({error}); pass another --out."
        ) from error


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
def _flags(config: TrainConfig, ranks: RunRanks) -> Iterator[None]:
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
