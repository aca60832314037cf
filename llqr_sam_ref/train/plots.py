"""Curves of one run or of several, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llqr_sam_ref.figures.style import METHODS
from llqr_sam_ref.train.checkpoint import write_atomically

# The book's colors, method by method; methods that the book does not draw take those of their kin.
KIN = {
    "muon": "gd",
    "m-sam": "msam",
    "asam": "sam",
    "fisher-sam": "sam",
    "friendly-sam": "sam",
    "llqr-published": "llqr",
    "llqr-reported": "llqr",
    "llqr-sam": "llqr_sam",
    "llqr-published-sam": "llqr_sam",
    "llqr-reported-sam": "llqr_sam",
}
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
        look = METHODS[KIN.get(method, method)]
        style: dict[str, Any] = {"color": look.light, "linewidth": WIDTHS[number % len(WIDTHS)]}
        style["linestyle"] = (0, look.dashes) if look.dashes else "-"
        rows = record["metrics"]
        tested = [row for row in rows if row["test_accuracy"] is not None]
        losses.plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], **style)
        accuracy = [row["test_accuracy"] for row in tested]
        epochs.plot([row["epoch"] for row in tested], accuracy, label=f"{name} ({method})", **style)
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
