"""What chapters share to draw and to check their own numbers."""

from llqr_sam_ref.errors import needs

needs("matplotlib", "figures")

from llqr_sam_ref.figures.says import says
from llqr_sam_ref.figures.style import METHODS, new_figure, plot, use_book_style
from llqr_sam_ref.tables import Table

__all__ = ["METHODS", "Table", "new_figure", "plot", "says", "use_book_style"]
