"""The backend of the page's Python: figures wait until the end of the cell, where cell_runner draws them as SVG."""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG as FigureCanvas
from matplotlib.backends.backend_svg import FigureManager

__all__ = ["FigureCanvas", "FigureManager", "show"]


def show(*arguments: Any, **options: Any) -> None:
    """Figures are shown at the end of the cell."""
