"""What a person sees while it trains: a progress bar, one line per epoch, scalars for TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Display:
    """Shows nothing when it is not told to, so that a loop need not ask.

    Args:
        folder: of the run; scalars go below it.
        steps: of the whole run.
        done: steps taken before.
        bar: whether to show a progress bar.
        scalars: whether to write scalars, if TensorBoard is installed.
    """

    def __init__(self, folder: Path, steps: int, done: int, *, bar: bool, scalars: bool) -> None:
        self.bar: Any = None
        self.writer: Any = None
        if bar:
            try:
                from tqdm import tqdm  # type: ignore[import-untyped]
            except ImportError:
                print("no progress bar: tqdm is not installed.", file=sys.stderr)
            else:
                self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1)
        if scalars:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("no scalars for TensorBoard: it is not installed.", file=sys.stderr)
            else:
                self.writer = SummaryWriter(folder / "tensorboard", purge_step=done)

    def step(self, number: int, values: Mapping[str, float], unit: str) -> None:
        """Show where training stands.

        Args:
            number: steps taken.
            values: loss, accuracy, rate (examples per second), radius and lr of the last step.
            unit: of examples.
        """
        if self.bar is not None:
            text = f"loss {values['loss']:.4f}  acc {values['accuracy']:.4f}  {values['rate']:.0f} {unit}/s"
            if values["radius"]:
                text += f"  |eps| {values['radius']:.3g}"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(number - self.bar.n)
        self._scalars("train", values, number)

    def epoch(self, row: Mapping[str, Any], epochs: int, unit: str) -> None:
        """Show an epoch's line.

        Args:
            row: the epoch's metrics, as in the record.
            epochs: of the whole run.
            unit: of examples.
        """
        text = f"epoch {row['epoch']:>3}/{epochs}  train {row['train_loss']:.4f} {row['train_accuracy']:.4f}"
        if row["test_loss"] is not None:
            text += f"  test {row['test_loss']:.4f} {row['test_accuracy']:.4f}"
        self.say(f"{text}  lr {row['lr']:.3g}  {row['per_second']:.0f} {unit}/s")
        if self.bar is not None:
            self.bar.update(row["step"] - self.bar.n)
        self._scalars("epoch", {k: row[k] for k in COLUMNS if row[k] is not None}, row["step"])

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)

    def close(self) -> None:
        """Leave the terminal and the scalars in order."""
        for part in (self.bar, self.writer):
            if part is not None:
                part.close()

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)
