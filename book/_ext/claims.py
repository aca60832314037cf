"""``{claims}``: the ledger as text. Evidence that is missing or does not hold fails the build."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # book.experiments, wherever the build was started

from book.experiments.claims import FILE, SIDES, Claim, Evidence, EvidenceError, ledger

HEADS = {"for": "For.", "against": "Against.", "unclear": "Unclear."}


class Claims(SphinxDirective):
    """All claims: a table of verdicts with the option ``:table:``, else every claim with its evidence."""

    option_spec = {"table": directives.flag}  # noqa: RUF012  (docutils reads it off the class)

    def run(self) -> list[nodes.Node]:
        """Return what the MyST text of the ledger becomes."""
        self.env.note_dependency(str(FILE))
        for path in sorted((FILE.parents[1] / "results").glob("*.json")):
            self.env.note_dependency(str(path))
        try:
            claims = ledger()
        except EvidenceError as error:
            raise self.error(f"the ledger: {error}") from error
        lines = (
            table(claims) if "table" in self.options else [line for claim in claims for line in entry(claim)]
        )
        place = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(FILE)), self.content_offset, place)
        return list(place.children)


def table(claims: list[Claim]) -> list[str]:
    """A row per claim."""
    head = ["| | claim | verdict |", "| --- | --- | --- |"]
    return [*head, *(f"| {claim.id} | {claim.claim} | {claim.verdict} |" for claim in claims), ""]


def entry(claim: Claim) -> list[str]:
    """One claim with everything that belongs to it."""
    verdict = claim.verdict.capitalize()
    lines = [
        f"**{claim.id}. {claim.claim}** {{cite}}`{claim.source}`. *{verdict}.* {{ref}}`{claim.chapter}`.",
        "",
    ]
    for side in SIDES:
        lines += [f"- *{HEADS[side]}* {item.says} {_where(item)}" for item in claim.evidence[side]]
    return [*lines, f"- *What would change it.* {claim.change}", ""]


def _where(item: Evidence) -> str:
    if item.kind == "result":
        return f"({{prf:ref}}`{item.where}`)"
    return f"(record `{item.where}`)" if item.kind == "record" else f"(asserted in {{doc}}`/{item.where}`)"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
