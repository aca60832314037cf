"""The picture that other sites show beside a link to the book, 1200 by 630 pixels.

python -m book.figures.card book/_static/card.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from llqr_sam_ref.exact import dynamics, landscapes
from llqr_sam_ref.figures.style import INK, METHODS

START = np.array([-1.5, 0.5])
# The race of chapter 12 around the saddle of the two-weight network: the same start, the same rho.
RUNNERS = {
    "gd": (dynamics.gd(0.01), 200),
    "sam": (dynamics.sam(0.01, 1.0), 200),
    "msam": (dynamics.monge_sam(0.01, 1.0), 200),
}


def card(title: str) -> Figure:
    """The banana, three runners from one start, and the book's title."""
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    ax = figure.add_axes((0.5, 0.0, 0.5, 1.0))
    banana = landscapes.banana()
    side = np.linspace(-2.2, 2.2, 240)
    grid = np.stack(np.meshgrid(side, side * 1.05, indexing="xy"), axis=-1)
    ax.contour(
        side,
        side * 1.05,
        banana.value(grid),
        [0.05, 0.4, 1, 2.5, 6, 14, 30],
        colors=INK,
        alpha=0.3,
        linewidths=1.2,
    )
    for name, (method, steps) in RUNNERS.items():
        look = METHODS[name]
        path = dynamics.trajectory(method, banana, START, steps)
        ax.plot(*path.T, color=look.light, linewidth=4, dashes=look.dashes or (None, None))
        ax.plot(*path[-1], marker=look.marker, color=look.light, markersize=15)
    ax.plot(*START, "o", color=INK, markersize=12)
    ax.set_axis_off()
    figure.text(
        0.06,
        0.62,
        title.replace(" and ", "\nand "),
        fontsize=50,
        color=INK,
        family="DejaVu Serif",
        linespacing=1.15,
        va="center",
    )
    figure.text(0.06, 0.36, "An executable book on", fontsize=21, color=INK)
    words = {"sam": "SAM", "msam": "Monge SAM", "llqr": "LLQR", "llqr_sam": "LLQR+SAM"}
    for row, (name, word) in enumerate(words.items()):
        look = METHODS[name]
        figure.text(
            0.06 + 0.2 * (row % 2),
            0.27 - 0.09 * (row // 2),
            word,
            fontsize=25,
            color=look.text_light,
            weight="bold",
        )
    return figure


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    card(yaml.safe_load((root / "_config.yml").read_text("utf-8"))["title"]).savefig(
        sys.argv[1], metadata={"Software": None}
    )
