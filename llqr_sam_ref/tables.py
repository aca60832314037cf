"""Tables of results: HTML on a page, aligned text in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


class Table:
    """Rows of text, the first column to the left and the others to the right.

    Args:
        head: titles of the columns.
        rows: entries as they are to be read, as many as titles.

    Raises:
        ValueError: a row has more or fewer entries than there are titles.
    """

    def __init__(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            if len(row) != len(head):
                raise ValueError(f"the row {list(row)} has {len(row)} entries; pass {len(head)}.")
        self.head, self.rows = tuple(head), [tuple(row) for row in rows]

    def __repr__(self) -> str:
        """Aligned text."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in self.head)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(entry)}</td>" for entry in row[1:])
            + "</tr>"
            for row in self.rows
        )
        table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return (
            f'<div class="pst-scrollable-table-container"><table class="table results">{table}</table></div>'
        )
