"""The book's plan: all chapters in order, with minutes to read. Numbers and reading lanes follow from it."""

from __future__ import annotations

from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles as Collector


class Chapter(NamedTuple):
    """One line of the plan."""

    docname: str
    title: str
    minutes: int


PARTS: dict[str, list[Chapter]] = {
    "Geometry": [
        Chapter("book/geometry/steepest", "Which way is down?", 18),
        Chapter("book/geometry/ravine", "The best step is almost the worst", 22),
        Chapter("book/geometry/distances", "Measure what the network says", 25),
        Chapter("book/geometry/sharpness", "The same function, twenty thousand times sharper", 20),
    ],
    "SAM": [
        Chapter("book/sam/adversary", "The worst neighbor", 25),
        Chapter("book/sam/cycle", "SAM never stops", 22),
        Chapter("book/sam/bias", "What SAM secretly minimizes", 25),
        Chapter("book/sam/saddles", "Stuck on a hilltop", 18),
        Chapter("book/sam/practice", "Two backward passes and ten ways to get them wrong", 28),
    ],
    "Monge SAM": [
        Chapter("book/monge/graph", "Walk on the surface, not on the map", 20),
        Chapter("book/monge/invariance", "Rename the weights and look again", 22),
        Chapter("book/monge/radius", "Is it just a smaller rho?", 20),
    ],
    "LLQR": [
        Chapter("book/llqr/lqr", "Steering in advance", 25),
        Chapter("book/llqr/network", "A network is a vehicle, weights are the steering", 25),
        Chapter("book/llqr/equivalence", "One sweep back, one sweep forth: Newton", 30),
        Chapter("book/llqr/relaxation", "Learn the inverse instead of solving", 28),
        Chapter("book/llqr/structures", "What shape is a ruler allowed to have?", 25),
        Chapter("book/llqr/clock", "Why did nothing happen?", 20),
    ],
    "LLQR+SAM": [
        Chapter("book/together/potholes", "A slow map and fast shock absorbers", 25),
        Chapter("book/together/escape", "Unstable is not out", 28),
        Chapter("book/together/algorithm", "The whole machine on one page", 25),
    ],
    "At scale": [
        Chapter("book/scale/machines", "From one core to many cards", 30),
        Chapter("book/scale/comparing", "A fair fight", 30),
    ],
    "The ledger": [
        Chapter("book/ledger/claims", "What is true, what needs a condition, what we did not see", 15),
    ],
}
CHAPTERS = [chapter for part in PARTS.values() for chapter in part]
NUMBER = {chapter.docname: number for number, chapter in enumerate(CHAPTERS, start=1)}


def _line(chapter: Chapter) -> nodes.list_item:
    """One chapter: number, title as a link, minutes."""
    number = f"{NUMBER[chapter.docname]}"
    paragraph = nodes.paragraph("", "", nodes.inline("", number, classes=["chapter-number"]), nodes.Text(" "))
    link = addnodes.pending_xref(
        "",
        nodes.inline("", chapter.title),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{chapter.docname}",
        refexplicit=True,
        refwarn=True,
    )
    paragraph += [link, nodes.inline("", f" {chapter.minutes} min", classes=["minutes"])]
    return nodes.list_item("", paragraph)


class Chapters(SphinxDirective):
    """List chapters by number: ``1 2 13``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the list."""
        chapters = [CHAPTERS[int(number) - 1] for number in self.arguments[0].split()]
        return [nodes.bullet_list("", *map(_line, chapters), classes=["chapters"])]


def _number_from_the_plan(collector: Collector, env: BuildEnvironment) -> list[str]:
    """Sphinx's own numbering, then the chapter's first number replaced by its number in the plan."""
    before = env.toc_secnumbers
    _assign(collector, env)
    for docname, number in NUMBER.items():
        sections = env.toc_secnumbers.get(docname)
        if not sections:
            continue
        env.toc_secnumbers[docname] = {key: (number, *rest[1:]) for key, rest in sections.items() if rest}
        for titled in (env.titles[docname], *env.tocs[docname].findall(nodes.reference)):
            if titled.get("secnumber"):
                titled["secnumber"] = [number, *titled["secnumber"][1:]]
    return [docname for docname, now in env.toc_secnumbers.items() if now != before.get(docname)]


_assign = Collector.assign_section_numbers


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    Collector.assign_section_numbers = _number_from_the_plan  # type: ignore[method-assign]
    app.add_directive("chapters", Chapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
