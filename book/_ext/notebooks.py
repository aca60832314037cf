"""Every executed page can be downloaded as a notebook: the theme's button gets the file that it looks for.

Where the repository has an address (book/_ext/address.py), a button opens the same notebook on somebody's machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from address import address
from docutils import nodes
from reader_copy import reader_copy
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

LOGOS = {"Colab": "logo_colab.png", "Binder": "logo_binder.svg"}


def _name_of(env: BuildEnvironment, page: str, role: str, target: str) -> str:
    """What the page prints for a reference: a number, a title, authors and year."""
    if role == "cite":
        return _citation(env, target)
    if role == "eq":
        docname, _ = env.get_domain("math").data["objects"].get(target, (page, 0))
        number = env.toc_fignumbers.get(docname, {}).get("displaymath", {}).get(f"equation-{target}")
        return f"({'.'.join(map(str, number))})" if number else target
    if role == "prf:ref":
        entry = getattr(env, "proof_list", {}).get(target, {})
        kind = str(entry.get("realtype", "statement"))
        docname = str(entry.get("docname", page))
        counted = env.toc_fignumbers.get(docname, {})
        number = next((found[target] for found in counted.values() if target in found), ())
        return f"{kind.capitalize()} {'.'.join(map(str, number))}".strip()
    labels = env.get_domain("std").data["labels"]
    if role == "doc":
        target = str((Path("/") / Path(page).parent / target).resolve()).lstrip("/")
        title = env.titles.get(target)
        return title.astext() if title is not None else target
    if role == "numref":
        docname, node_id = env.get_domain("std").data["anonlabels"].get(target, (page, target))
        number = env.toc_fignumbers.get(docname, {}).get("figure", {}).get(node_id)
        return f"Figure {'.'.join(map(str, number))}" if number else target
    return str(labels[target][2]) if target in labels else target


def _citation(env: BuildEnvironment, key: str) -> str:
    entry = env.get_domain("cite").bibdata.data.entries.get(key)
    if entry is None or not entry.persons.get("author"):
        return key
    names = [" ".join(person.last_names) for person in entry.persons["author"]]
    who = names[0] + (" et al." if len(names) > 2 else f" and {names[1]}" if len(names) == 2 else "")
    return f"{who}, {entry.fields.get('year', '')}"


def _offer(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    executed = Path(app.env.mystnb_config.output_folder) / f"{pagename}.ipynb"
    if not executed.is_file():
        return
    target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(executed, as_version=4)
    root = Path(app.srcdir)
    copy = reader_copy(
        notebook,
        pagename,
        root,
        lambda role, name: _name_of(app.env, pagename, role, name),
        address(root).repository,
    )
    nbformat.write(copy, target)
    context["ipynb_source"] = f"{pagename}.ipynb"


def _launch(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """A button of the theme; its own would lead to the page's source, which is no notebook."""
    services = address(Path(app.srcdir)).launch(pagename)
    if "ipynb_source" not in context or not services:
        return
    buttons = [
        {
            "type": "link",
            "url": url,
            "text": name,
            "tooltip": f"Run this page on {name}",
            "icon": f"_static/images/{LOGOS[name]}",
            "label": f"launch-{name.lower()}-button",
        }
        for name, url in services.items()
    ]
    group = {
        "type": "group",
        "tooltip": "Run this page",
        "icon": "fas fa-rocket",
        "buttons": buttons,
        "label": "launch-buttons",
    }
    context["header_buttons"].insert(0, group)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx (the theme builds its buttons at priority 501)."""
    app.connect("html-page-context", _offer)
    app.connect("html-page-context", _launch, priority=510)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
