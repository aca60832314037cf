"""What builds on what, read off the sources: the line under a chapter's title, and the map of results.

A result uses another when its statement or its proof refers to it, or to an equation in its statement. A chapter
builds on an earlier one when its main text (what stands before its common mistakes) refers to it, or to a result
or an equation of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from plan import CHAPTERS, NUMBER, PARTS
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from theorems import _reference_to

MAP_PAGE = "book/reference/map"
FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\} ?(.*)$")
LABEL = re.compile(r"^ *(?::label: |\$\$ \()([\w-]+)\)?$", re.MULTILINE)  # of a directive, of a $$ formula $$
CITED = re.compile(r"\{(?:prf:ref|eq)\}`([\w-]+)`")
NAMED = re.compile(r"\{ref\}`(?:[^`<]*<)?(ch-[\w-]+)>?`")
CHAPTER = re.compile(r"^\((ch-[\w-]+)\)=$", re.MULTILINE)


class Result(NamedTuple):
    """A statement of the book."""

    label: str
    chapter: str
    uses: tuple[str, ...]


class Uses(NamedTuple):
    """What the sources say.

    ``results`` by label in the book's order; ``chapters`` has for each chapter the earlier ones that it builds on,
    with the number of things that it cites of them.
    """

    results: Mapping[str, Result]
    chapters: Mapping[str, Mapping[str, int]]


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Statements and proofs of a page, in order: the kind of the directive, its title, and what stands in it."""
    found = []
    lines = text.splitlines()
    for start, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and fence[2].startswith("prf:") and fence[2] != "prf:ref":
            end = next(i for i in range(start + 1, len(lines)) if lines[i].strip() == fence[1])
            found.append((fence[2].removeprefix("prf:"), fence[3], "\n".join(lines[start + 1 : end])))
    return found


def read(sources: Mapping[str, str]) -> Uses:
    """Read the sources of the chapters, by name of the page and in the book's order."""
    home: dict[str, str] = {}  # of every label, its page
    statement_of: dict[str, str] = {}  # of an equation in a statement, the statement
    raw: dict[str, tuple[str, list[str]]] = {}
    for page, text in sources.items():
        home |= dict.fromkeys([*LABEL.findall(text), *CHAPTER.findall(text)], page)
        last = ""
        for kind, _, content in blocks(text):
            if kind != "proof":
                last, *equations = LABEL.findall(content)
                raw[last] = (page, [])
                statement_of |= dict.fromkeys(equations, last)
            raw[last][1].extend(CITED.findall(content))
    results = {}
    for label, (page, cited) in raw.items():
        used = [statement_of.get(name, name) for name in cited]
        results[label] = Result(label, page, tuple(dict.fromkeys(n for n in used if n in raw and n != label)))
    order = {page: number for number, page in enumerate(sources)}
    chapters: dict[str, dict[str, int]] = {}
    for page, text in sources.items():
        main = text.partition("\n## Common mistakes")[0]
        cited = {*CITED.findall(main), *NAMED.findall(main)}
        counts: dict[str, int] = {}
        for name in cited:
            there = home.get(name, page)
            if order[there] < order[page]:
                counts[there] = counts.get(there, 0) + 1
        chapters[page] = dict(sorted(counts.items(), key=lambda item: order[item[0]]))
    return Uses(results, chapters)


def of_book(root: Path) -> Uses:
    """Read the book."""
    return read({c.docname: (root / f"{c.docname}.md").read_text("utf-8") for c in CHAPTERS})


def _listed(pages: list[str]) -> list[nodes.Node]:
    """Numbers of chapters, each a link with the chapter's title."""
    listed: list[nodes.Node] = []
    for place, page in enumerate(pages):
        if place:
            listed.append(nodes.Text(" and " if place == len(pages) - 1 else ", "))
        where = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
        text = nodes.inline("", str(NUMBER[page]))
        listed.append(addnodes.pending_xref("", text, refexplicit=True, refwarn=True, **where))
    return listed


def _put_line_under_the_title(app: Sphinx, doctree: nodes.document) -> None:
    page = app.env.docname
    if page not in NUMBER:
        return
    uses = of_book(Path(app.srcdir))
    minutes = CHAPTERS[NUMBER[page] - 1].minutes
    line = nodes.paragraph("", "", nodes.Text(f"{minutes} minutes."), classes=["chapter-line"])
    before = list(uses.chapters[page])
    after = [other for other, counts in uses.chapters.items() if page in counts]
    for words, pages in (("Builds on", before), ("Used by", after)):
        if pages:
            line += [nodes.Text(f" {words} "), *_listed(pages), nodes.Text(".")]
    title = next(iter(doctree.findall(nodes.title)))
    title.parent.insert(title.parent.index(title) + 1, line)


class ResultMap(SphinxDirective):
    """The chapters with an arc for every loan, and the results that use one or are used, with both."""

    def run(self) -> list[nodes.Node]:
        """Return picture and tables."""
        uses = of_book(Path(self.env.srcdir))
        used_by: dict[str, list[str]] = {label: [] for label in uses.results}
        for result in uses.results.values():
            for name in result.uses:
                used_by[name].append(result.label)
        found: list[nodes.Node] = [nodes.raw("", picture(uses, self.env.docname), format="html")]
        for part, chapters in PARTS.items():
            pages = {chapter.docname for chapter in chapters}
            rows = [
                [[result.label], list(result.uses), used_by[result.label]]
                for result in uses.results.values()
                if result.chapter in pages and (result.uses or used_by[result.label])
            ]
            if rows:
                found += [nodes.rubric("", part), _table(("result", "uses", "is used by"), rows)]
        return found


def _table(head: tuple[str, ...], rows: list[list[list[str]]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in head)))
    body = nodes.tbody()
    for row in rows:
        line = nodes.row()
        for labels in row:
            text = nodes.paragraph()
            for place, label in enumerate(labels):
                text += [*([nodes.Text(", ")] if place else []), _reference_to(label)]
            line += nodes.entry("", text)
        body += line
    group += body
    return nodes.table("", group, classes=["result-map"])


def picture(uses: Uses, page: str) -> str:
    """All chapters on a line; an arc from a chapter to each later one that builds on it, wider for more loans."""
    width, step = 720, 28.5
    place = {chapter.docname: 32 + step * i for i, chapter in enumerate(CHAPTERS)}
    widest = max(
        place[later] - place[earlier] for later, counts in uses.chapters.items() for earlier in counts
    )
    ground = 10 + round(0.85 * widest / 2)
    arcs = []
    for later, counts in uses.chapters.items():
        for earlier, count in counts.items():
            left, right = place[earlier], place[later]
            radius = (right - left) / 2
            style = f"fill:none;stroke:var(--figure-ink);stroke-opacity:0.45;stroke-width:{0.6 + 0.35 * count:.2f}"
            arc = f"M{left:.1f},{ground} A{radius:.1f},{0.85 * radius:.1f} 0 0 1 {right:.1f},{ground}"
            arcs.append(f'<path d="{arc}" style="{style}"/>')
    up = "../" * page.count("/")
    marks = [
        f'<a href="{up}{chapter.docname}.html"><title>{chapter.title}</title>'
        f'<text x="{place[chapter.docname]:.1f}" y="{ground + 20}" text-anchor="middle" font-size="13">'
        f"{NUMBER[chapter.docname]}</text></a>"
        for chapter in CHAPTERS
    ]
    return (
        f'<figure><svg class="figure-svg" viewBox="0 0 {width} {ground + 30}" role="group" '
        f'aria-label="The chapters in a row, an arc from each to every later one that builds on it">'
        f"{''.join(arcs)}{''.join(marks)}</svg></figure>"
    )


def _reread_when_the_uses_changed(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    now = repr(of_book(Path(env.srcdir)))
    before = getattr(env, "uses_key", None)
    env.uses_key = now  # type: ignore[attr-defined]  # Sphinx pickles what it finds on env
    return sorted({*NUMBER, MAP_PAGE} & env.found_docs) if before != now else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("result-map", ResultMap)
    app.connect("doctree-read", _put_line_under_the_title)
    app.connect("env-get-outdated", _reread_when_the_uses_changed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
