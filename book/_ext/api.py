"""The directive ``api``: every public module of a package, each a section with all its public members.

A module added to the package appears on the page by itself. Public is what has no leading underscore; where a module
or a subpackage has ``__all__``, only what stands there: a subpackage is a door, and its modules are not listed.
Docstrings are plain text: characters that mean
something to reStructuredText stand for themselves, and indented lines are formulas.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example):$")
MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")


def public_modules(package: str) -> list[str]:
    """Names of the package's modules and subpackages that have something public, in alphabetical order."""
    modules = pkgutil.iter_modules(import_module(package).__path__)
    names = [module.name for module in modules if not module.name.startswith("_")]
    return sorted(name for name in names if public_members(f"{package}.{name}"))


def public_members(module_name: str) -> list[str]:
    """The functions and classes that a module, or a subpackage by its ``__all__``, has for others."""
    module = import_module(module_name)
    is_package = hasattr(module, "__path__")
    listed = getattr(module, "__all__", [] if is_package else None)
    return [
        name
        for name, item in vars(module).items()
        if (inspect.isfunction(item) or inspect.isclass(item))
        and (name in listed if listed is not None else not name.startswith("_"))
        and (item.__module__ == module_name or is_package)
    ]


class Api(SphinxDirective):
    """Sections of ``automodule``, one a module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the list of modules, then a section for each."""
        package = self.arguments[0]
        names = public_modules(package)
        overview = nodes.bullet_list("", *(self._line(package, name) for name in names), classes=["modules"])
        return [overview, *(self._section(package, name) for name in names)]

    def _line(self, package: str, name: str) -> nodes.list_item:
        docstring = (import_module(f"{package}.{name}").__doc__ or "").strip().partition("\n\n")[0]
        link = nodes.reference("", "", nodes.literal("", name), internal=True, refid=f"module-{name}")
        return nodes.list_item(
            "", nodes.paragraph("", "", link, nodes.Text(" " + " ".join(docstring.split())))
        )

    def _section(self, package: str, name: str) -> nodes.section:
        section = nodes.section(ids=[f"module-{name}"], names=[name])
        section += nodes.title("", "", nodes.literal("", name))
        lines = [
            "```{eval-rst}",
            f".. automodule:: {package}.{name}",
            f"   :members: {', '.join(public_members(f'{package}.{name}'))}",
            "   :imported-members:",
            "```",
        ]
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, section)
        return section


def _plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape inline markup outside ``code``; indented lines before the first section become literal text."""
    result: list[str] = []
    in_sections = False
    if what in {"property", "attribute"} and lines:
        lines[0] = f": {lines[0]}"  # napoleon reads "type: text" there and in Returns; ours are text only
    for line in lines:
        if result and re.match(r"(Returns|Yields):$", result[-1]):
            line = re.sub(r"^(\s*)", r"\1: ", line)
        in_sections = in_sections or bool(SECTION.match(line))
        formula = not in_sections and line.startswith("  ")
        if formula and result and not result[-1].startswith("  "):
            while result and not result[-1]:
                result.pop()
            result += ["", ".. code-block:: text", ""]
        elif line and not formula and result and result[-1].startswith("  ") and not in_sections:
            result.append("")
        result.append(line if formula else _escape(line))
    lines[:] = result


def _escape(line: str) -> str:
    parts = re.split(r"(``.+?``)", line)  # text and code in turn
    parts[::2] = [MARKUP.sub(lambda match: "\\" + match[0], part) for part in parts[::2]]
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("api", Api)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
