"""CITATION.cff, read in one place: the BibTeX entry that the start page shows, and where the book lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FILE = "CITATION.cff"
BRACES = str.maketrans({"{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#"})


def read(root: Path) -> dict[str, Any]:
    """The file's entries; a folder without the file has none."""
    path = root / FILE
    return dict(yaml.safe_load(path.read_text("utf-8"))) if path.is_file() else {}


def _author(person: dict[str, str]) -> str:
    if "name" in person:  # not a person: braces keep BibTeX from looking for a family name
        return "{" + person["name"].translate(BRACES) + "}"
    return f"{person['family-names']}, {person['given-names']}".translate(BRACES)


def bibtex(cff: dict[str, Any], year: str) -> str:
    """The entry that one pastes into a bibliography.

    Args:
        cff: what CITATION.cff says.
        year: where the file gives no date of a release.

    Returns:
        A ``@misc`` entry, which every style of BibTeX knows.
    """
    first = cff["authors"][0]
    released = str(cff.get("date-released", year))[:4]
    word = first.get("name", "").split() or [first.get("family-names", "")]
    key = max(word, key=len).lower().replace("_", "")
    fields = {
        "author": " and ".join(map(_author, cff["authors"])),
        "title": "{" + cff["title"].translate(BRACES) + "}",
        "year": released,
        "note": f"Version {cff['version']}",
    }
    if "url" in cff:
        fields["url"] = cff["url"]
    lines = [f"  {name:<6} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{key}{released},", *lines, "}"])


class CiteTheBook(SphinxDirective):
    """The entry as a block of code, which has a button that copies it."""

    def run(self) -> list[nodes.Node]:
        """Return the block."""
        self.env.note_dependency(str(Path(self.env.srcdir) / FILE))
        entry = bibtex(read(Path(self.env.srcdir)), str(self.config.copyright))
        block = nodes.literal_block(entry, entry, language="bibtex", classes=["cite-the-book"])
        return [block]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("cite-the-book", CiteTheBook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
