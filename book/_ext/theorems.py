"""A theorem without a test does not build, and each theorem says which test checks it.

The statement labeled ``thm-sam-two-cycle`` is checked by ``test_thm_sam_two_cycle`` in tests/theorems/. The
build appends "Checked by ..." to every labeled statement, with a link to the test's source on the page
of checks, and warns (so fails) when there is no such test. The directive ``theorem-checks`` renders the
test files whole, an anchor at every test, with the mutation that the test must reject and a link back.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
FOLDER = "tests/theorems"
CHECKS_PAGE = "book/reference/checks"


class Check(NamedTuple):
    """One test of one theorem; lines count from 1 and include the decorators."""

    name: str
    label: str
    first: int
    last: int
    mutations: tuple[str, ...]


def checks_in(source: str) -> list[Check]:
    """The theorem tests of one file, in order, with what their mutations claim."""
    checks = []
    for item in ast.parse(source).body:
        if not isinstance(item, ast.FunctionDef) or not item.name.startswith("test_"):
            continue
        mutations = [
            ast.literal_eval(call.args[0])
            for call in item.decorator_list
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "mutation"
        ]
        first = min([item.lineno, *(decorator.lineno for decorator in item.decorator_list)])
        label = item.name.removeprefix("test_").replace("_", "-")
        checks.append(Check(item.name, label, first, item.end_lineno or first, tuple(mutations)))
    return checks


def test_files(root: Path) -> list[Path]:
    """The files that test theorems; ``test_mutations.py`` tests the tests."""
    files = [path for path in (root / FOLDER).glob("test_*.py") if path.name != "test_mutations.py"]
    return sorted(files, key=lambda path: path.read_text("utf-8"))  # docstrings begin with the Part's number


def all_checks(root: Path) -> dict[str, Check]:
    """Every theorem test, by the label of its theorem."""
    return {check.label: check for path in test_files(root) for check in checks_in(path.read_text("utf-8"))}


class TheoremChecks(SphinxDirective):
    """Every test file of tests/theorems, an anchor and a headline at each test."""

    def run(self) -> list[nodes.Node]:
        """Return one section per file."""
        return [self._file(path) for path in test_files(Path(self.env.srcdir))]

    def _file(self, path: Path) -> nodes.section:
        self.env.note_dependency(str(path))
        source = path.read_text("utf-8")
        lines = source.splitlines()
        docstring = ast.get_docstring(ast.parse(source)) or path.stem
        section = nodes.section(ids=[path.stem.replace("_", "-")], names=[path.stem])
        section += nodes.title("", docstring.splitlines()[0].partition(":")[0].rstrip("."))
        where = nodes.literal("", f"{FOLDER}/{path.name}")
        section += nodes.paragraph("", "", where, nodes.Text(". " + " ".join(docstring.split())))
        start = 1
        for check in checks_in(source):
            section += self._code(lines, start, check.first - 1)
            section += self._headline(check)
            section += self._code(lines, check.first, check.last)
            start = check.last + 1
        section += self._code(lines, start, len(lines))
        self.set_source_info(section)
        return section

    def _headline(self, check: Check) -> list[nodes.Node]:
        name = check.name.replace("_", "-")
        head = nodes.rubric("", "", nodes.literal("", check.name), ids=[name], classes=["check"])
        text = nodes.paragraph(classes=["check-facts"])
        text += [nodes.Text("Checks "), _pending_theorem(label=check.label), nodes.Text(".")]
        for mutation in check.mutations:
            text += nodes.Text(" Must fail when: ")
            text += nodes.emphasis("", mutation)
            text += nodes.Text(".")
        return [head, text]

    def _code(self, lines: list[str], first: int, last: int) -> list[nodes.Node]:
        while first <= last and not lines[first - 1].strip():
            first += 1
        while first <= last and not lines[last - 1].strip():
            last -= 1
        if first > last:
            return []
        code = "\n".join(lines[first - 1 : last])
        block = nodes.literal_block(code, code, language="python", linenos=False)
        return [block]


class TheoremCounts(SphinxDirective):
    """How many results, mutations and assertions there are, as last recorded beside the tests."""

    def run(self) -> list[nodes.Node]:
        """Return one paragraph."""
        path = Path(self.env.srcdir) / FOLDER / "statements.json"
        self.env.note_dependency(str(path))
        counts = json.loads(path.read_text("utf-8"))["counts"]
        text = (
            f"{counts['results']} tests, {counts['mutations']} mutations, {counts['assertions']} assertions. "
            f"Of the assertions {counts['can fail']} fail under a mutation, "
            f"{counts['assertions'] - counts['can fail']} under none yet: they are listed by name in "
        )
        return [
            nodes.paragraph(
                "", "", nodes.Text(text), nodes.literal("", f"{FOLDER}/statements.json"), nodes.Text(".")
            )
        ]


class _pending_theorem(nodes.Inline, nodes.Element):  # noqa: N801  (docutils writes node classes in lower case)
    """Becomes a link to the theorem with this label, once every page has been read."""


class LinkTheorems(SphinxPostTransform):
    """Put the "Checked by" line under each statement, and the link back on the page of checks."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: object) -> None:
        """Edit the doctree in place."""
        checks = all_checks(Path(self.env.srcdir))
        statements = _statements(self.env)
        for node in list(self.document.findall(_is_statement)):
            if node["label"] in checks and node["label"] in statements:
                page = self.app.builder.get_relative_uri(self.env.docname, CHECKS_PAGE)
                node += _checked_by(checks[node["label"]], page)
        for number, proof in enumerate(self.document.findall(_is_proof), start=1):
            _give_title(proof, f"proof-{number}")
        for node in list(self.document.findall(_pending_theorem)):
            label = node["label"]
            node.replace_self(_reference_to(label) if label in statements else nodes.literal("", label))


def _is_statement(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Element) and "realtype" in node and "label" in node


def _is_proof(node: nodes.Node) -> bool:
    return isinstance(node, nodes.admonition) and "proof" in node["classes"] and node["ids"] == ["proof"]


def _give_title(proof: nodes.Element, node_id: str) -> None:
    """sphinx-proof writes "Proof. " into the text and one id for all; to fold, each needs its own."""
    proof["ids"] = [node_id]
    first = next(iter(proof.findall(nodes.Text)))
    first.parent.replace(first, nodes.Text(first.astext().removeprefix("Proof. ")))
    proof.insert(0, nodes.title("", "Proof"))


def _statements(env: BuildEnvironment) -> dict[str, dict[str, object]]:
    """Every statement that an author labeled (sphinx-proof labels the others by kind and serial number)."""
    found: dict[str, dict[str, object]] = getattr(env, "proof_list", {})
    return {
        label: entry for label, entry in found.items() if not re.fullmatch(rf"{entry['realtype']}-\d+", label)
    }


def _reference_to(label: str) -> addnodes.pending_xref:
    return addnodes.pending_xref(
        "",
        nodes.inline("", label),
        refdomain="prf",
        reftype="ref",
        reftarget=label,
        refexplicit=False,
        refwarn=True,
        refdoc=CHECKS_PAGE,
    )


def _checked_by(check: Check, page: str) -> nodes.paragraph:
    link = nodes.reference("", "", nodes.literal("", check.name), internal=True)
    link["refuri"] = f"{page}#{check.name.replace('_', '-')}"
    return nodes.paragraph("", "", nodes.Text("Checked by "), link, nodes.Text("."), classes=["checked-by"])


def _warn_about_theorems_without_a_test(app: Sphinx, env: BuildEnvironment) -> None:
    checks = all_checks(Path(env.srcdir))
    for label, entry in _statements(env).items():
        if label not in checks:
            test = "test_" + label.replace("-", "_")
            logger.warning(
                "%s has no test: write %s in %s/", label, test, FOLDER, location=str(entry["docname"])
            )


def _reread_when_a_test_changed(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    sources = b"".join(path.read_bytes() for path in test_files(Path(env.srcdir)))
    key = hashlib.sha256(sources).hexdigest()
    stale = getattr(env, "theorem_tests_key", None) != key
    env.theorem_tests_key = key  # type: ignore[attr-defined]  # Sphinx pickles what it finds on env
    pages = {str(entry["docname"]) for entry in _statements(env).values()} | {CHECKS_PAGE}
    return sorted(pages & env.found_docs) if stale else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_node(_pending_theorem)
    app.add_directive("theorem-checks", TheoremChecks)
    app.add_directive("theorem-counts", TheoremCounts)
    app.add_post_transform(LinkTheorems)
    app.connect("env-get-outdated", _reread_when_a_test_changed)
    app.connect("env-check-consistency", _warn_about_theorems_without_a_test)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
