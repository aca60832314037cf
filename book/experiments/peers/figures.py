"""Loss against steps, gradient evaluations and seconds, in the book's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.experiments.peers.methods import METHODS
from llqr_sam_ref.figures.style import new_figure, use_book_style
from llqr_sam_ref.train.methods import METHODS as TRAINED
from llqr_sam_ref.train.methods import Look

# Methods without a look of their own are kin of those that have one: the same color, other dashes.
LOOKS: dict[str, Look] = {
    **{
        name: TRAINED[name].look
        for name in ("sgd", "adamw", "muon", "sam", "llqr", "llqr-published", "llqr-sam")
    },
    "soap": TRAINED["muon"].look.kin(METHODS["soap"].about, (2, 2), ""),
    "shampoo": TRAINED["muon"].look.kin(METHODS["shampoo"].about, (6, 2, 1, 2, 1, 2), ""),
    "identity": TRAINED["llqr"].look.kin(METHODS["identity"].about, (1, 2), ""),
    "adamw-sam": TRAINED["sam"].look.kin(METHODS["adamw-sam"].about, (2, 2), ""),
    "llqr-sampled": TRAINED["llqr-sampled"].look,
    "llqr-diagonal": TRAINED["llqr"].look.kin(METHODS["llqr-diagonal"].about, (6, 2), ""),
}
AXES = ("steps", "gradient evaluations", "seconds")


def curves(results: Mapping[str, Any], task: str, methods: Sequence[str] | None = None) -> Figure:
    """Training loss of a task against steps, gradient evaluations and seconds.

    Args:
        results: of the summary, or read back from its file.
        task: which.
        methods: which; None for all.

    Returns:
        Three panels with common ordinates, the loss on a logarithmic axis.
    """
    rows, steps = results["tasks"][task]["methods"], results["tasks"][task]["steps"]
    figure, panels = new_figure("triple", ncols=3, sharey=True)
    for name in rows if methods is None else methods:
        row, look = rows[name], LOOKS[name]
        count = len(row["curve"])
        costs = (1.0, row["evaluations_per_step"], row["seconds_per_step"])
        for panel, cost in zip(panels, costs, strict=True):
            if count:
                at = [cost * steps * (i + 0.5) / count for i in range(count)]
                panel.plot(at, row["curve"], **look.line())
    for panel, title in zip(panels, AXES, strict=True):
        panel.set_xlabel(title)
        panel.set_xscale("log")
        panel.set_yscale("log")
    panels[0].set_ylabel("training loss")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    figure.set_size_inches(7.2, 3.2)
    return figure


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """One SVG file per task.

    Args:
        results: of the summary.
        folder: where; made if it is not there.

    Returns:
        The files.
    """
    use_book_style()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in results["tasks"]:
        figure = curves(results, task)
        paths.append(folder / f"peers-{task}.svg")
        figure.savefig(paths[-1])
        plt.close(figure)
    return paths
