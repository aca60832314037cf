"""MyST directives and roles as plain Markdown, for a notebook outside the book."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\}[ \t]*(.*)$")
ROLE = re.compile(r"\{(eq|ref|numref|doc|prf:ref|cite|cite:t|cite:p|ref:doc|download)\}`([^`]+)`")
LABEL = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
NAMED = {"exercise": "Exercise", "solution": "Solution", "prf:proof": "Proof"}
Name = Callable[[str, str], str]


def plain_markdown(text: str, folder: Path, name_of: Name) -> str:
    """A Markdown cell without directives, labels and roles.

    Args:
        text: the cell.
        folder: of the page, from which included files are found.
        name_of: from a role and its target to what the page prints there.

    Returns:
        Statements become bold headings, what the page folds becomes ``<details>``, included code a code block.
    """
    text = _blocks(LABEL.sub("", text).splitlines(), folder, name_of)
    text = re.sub(
        r"^\$\$[ \t]*\(([\w-]+)\)[ \t]*$",
        lambda m: rf"\tag{{{name_of('eq', m[1]).strip('()')}}}" "\n$$",
        text,
        flags=re.M,
    )
    return ROLE.sub(lambda match: _role(match[1], match[2], name_of), text)


def _role(role: str, content: str, name_of: Name) -> str:
    explicit = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content, re.DOTALL)
    if explicit and explicit[1]:
        return explicit[1]
    if role.startswith("cite"):
        papers = [name_of("cite", key.strip()) for key in content.split(",")]
        if role == "cite:t":
            return ", ".join(re.sub(r", (\d{4})$", r" (\1)", paper) for paper in papers)
        return f"({'; '.join(papers)})"
    return name_of(role, content.strip())


def _blocks(lines: list[str], folder: Path, name_of: Name) -> str:
    result: list[str] = []
    waiting = iter(lines)
    for line in waiting:
        fence = FENCE.match(line.strip())
        if fence is None:
            result.append(line)
            continue
        body = []
        for inner in waiting:
            if inner.strip() == fence[1]:
                break
            body.append(inner)
        options, body = _options(body)
        result += ["", *_directive(fence[2], fence[3], options, body, folder, name_of).splitlines(), ""]
    return "\n".join(result)


def _options(body: list[str]) -> tuple[dict[str, str], list[str]]:
    options = {}
    while body and (match := re.match(r":([\w-]+):[ \t]*(.*)", body[0].strip())):
        options[match[1]] = match[2]
        body = body[1:]
    return options, body


def _directive(
    kind: str, title: str, options: dict[str, str], body: list[str], folder: Path, name_of: Name
) -> str:
    text = "\n".join(body).strip("\n")
    if kind == "math":
        tag = rf" \tag{{{name_of('eq', options['label']).strip('()')}}}" if "label" in options else ""
        return f"$$\n{text}{tag}\n$$"
    if kind == "literalinclude":
        return f"```python\n{_included(folder / title, options)}\n```"
    if kind in {"code-block", "eval-rst"}:
        return f"```{title or 'text'}\n{text}\n```"
    if kind == "chapters":
        return ""
    text = _blocks(body, folder, name_of).strip("\n")
    if kind == "live-figure":
        return f"> *A figure that computes, on the page ({title}).* {' '.join(text.split())}"
    if kind == "exercise":
        return f"**Exercise{f': {title}' if title else ''}.** {text}"
    if kind in {"solution", "prf:proof"}:
        return f"<details><summary>{NAMED[kind]}</summary>\n\n{text}\n\n</details>"
    if kind.startswith("prf:"):
        number = name_of("prf:ref", options.get("label", ""))
        return f"**{number}{f' ({title})' if title else ''}.**\n\n{text}"
    if "dropdown" in options.get("class", ""):
        return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
    return "\n".join(
        f"> {line}".rstrip() for line in [f"**{title or kind.capitalize()}**", "", *text.splitlines()]
    )


def _included(path: Path, options: dict[str, str]) -> str:
    """The part of a file that ``literalinclude`` would show."""
    lines = path.read_text("utf-8").splitlines()
    if "pyobject" in options:
        items: list[ast.stmt] = ast.parse("\n".join(lines)).body
        item = None
        for name in options["pyobject"].split("."):
            item = next(item for item in items if getattr(item, "name", "") == name)
            items = getattr(item, "body", [])
        assert item is not None
        first = min([item.lineno, *(line.lineno for line in getattr(item, "decorator_list", []))])
        lines = lines[first - 1 : item.end_lineno]
    for option, before in (("start-at", 0), ("start-after", 1)):
        if option in options:
            lines = lines[next(i for i, line in enumerate(lines) if options[option] in line) + before :]
    for option, after in (("end-at", 1), ("end-before", 0)):
        if option in options:
            lines = lines[: next(i for i, line in enumerate(lines) if options[option] in line) + after]
    return "\n".join(line[int(options.get("dedent") or 0) :] for line in lines).strip("\n")
