"""Curves of one run or of several, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.train.checkpoint import write_atomically
from llqr_sam_ref.train.methods import METHODS

WIDTHS = (1.6, 1.0, 2.4)


def draw(records: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Loss by epoch, and test accuracy by epoch and by second.

    Args:
        records: of the runs, by the name to show.
        path: where the picture goes.

    Returns:
        The same path.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, epochs, seconds = figure.subplots(1, 3)
    for number, (name, record) in enumerate(records.items()):
        method = record["config"]["optimizer"]
        check_choice("optimizer", method, METHODS)
        style = METHODS[method].look.line() | {"linewidth": WIDTHS[number % len(WIDTHS)]}
        rows = record["metrics"]
        tested = [row for row in rows if row["test_accuracy"] is not None]
        losses.plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], **style)
        accuracy = [row["test_accuracy"] for row in tested]
        epochs.plot([row["epoch"] for row in tested], accuracy, **style | {"label": f"{name} ({method})"})
        seconds.plot([row["seconds"] for row in tested], accuracy, **style)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
    epochs.set(xlabel="epoch", ylabel="test accuracy")
    seconds.set(xlabel="seconds", ylabel="test accuracy")
    for axes in (losses, epochs, seconds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    epochs.legend(fontsize=7, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically(path, lambda file: file.write(content.getvalue()))
    return path
