"""One color, one line style, one marker per method, on every page and in every figure.

Figures are SVG with a transparent background, drawn in the light palette. On the dark page the style sheet
``book/_static/book.css`` swaps each color for its dark partner. Line style and marker repeat what the color says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llqr_sam_ref.train.methods import METHODS as TABLE
from llqr_sam_ref.train.methods import Look

# The methods that chapters draw, by the names that style sheet and live figures have for them.
METHODS: dict[str, Look] = {
    "gd": replace(TABLE["sgd"].look, label="GD"),
    "sgd": TABLE["sgd"].look,
    "adamw": TABLE["adamw"].look,
    "sam": TABLE["sam"].look,
    "msam": TABLE["m-sam"].look,
    "llqr": TABLE["llqr"].look,
    "llqr_sam": TABLE["llqr-sam"].look,
}
INK = "#2b2f36"  # axes and text; the style sheet replaces it on the dark page
GRID = "#c9ced6"
INK_DARK = "#d5d9df"
GRID_DARK = "#48566b"

SIZES = {"single": (7.2, 4.2), "square": (4.8, 4.8), "pair": (7.2, 3.4), "triple": (7.2, 2.4)}


def use_book_style() -> None:
    """Set matplotlib to the book's look: SVG, text as text, 10 pt, transparent, no top and right spines."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg")  # type: ignore[no-untyped-call]
    mpl.rcParams.update({
        "svg.fonttype": "none",
        "svg.hashsalt": "llqr_sam_ref",
        "font.family": "sans-serif",
        "font.size": 10,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.transparent": True,
        "figure.figsize": SIZES["single"],
        "figure.constrained_layout.use": True,
        "lines.linewidth": 1.6,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "axes.unicode_minus": True,
    })


def plot(
    ax: Axes, method: str, x: Any, y: Any, *, end_label: bool = True, every: int | None = None
) -> Line2D:
    """Draw one method's curve in its style, with its name at the end of the line instead of a legend.

    Args:
        ax: where to draw.
        method: a key of ``METHODS``.
        x: abscissae, shape (n,).
        y: ordinates, shape (n,).
        end_label: write the method's name at the last point.
        every: put the method's marker on every so many points; None puts none.

    Returns:
        The line, for further styling.
    """
    style = METHODS[method]
    (line,) = ax.plot(x, y, **style.line())
    if every is not None:
        line.set_marker(style.marker)
        line.set_markevery(every)
        line.set_markersize(5)
    if end_label:
        ax.annotate(
            style.label,
            (x[-1], y[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=style.text_light,
            fontsize=9,
            annotation_clip=False,
        )
    return line


def new_figure(size: str = "single", ncols: int = 1, nrows: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """``plt.subplots`` in one of the book's sizes: "single", "square", "pair" or "triple"."""
    import matplotlib.pyplot as plt

    return plt.subplots(nrows, ncols, figsize=SIZES[size], **kwargs)
