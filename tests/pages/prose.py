"""What a page says in prose, and what its cells computed: the decimals of each."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from tests import rendered

FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\}(.*)$")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d{2,}(?![\d]|\.\d)")
# Not quantities: papers, versions, and numbers of things.
NAMES = re.compile(
    r"arXiv:?\s*\d{4}\.\d{5}(v\d+)?"
    r"|\btorch \d+\.\d+"
    r"|\b(Theorem|Proposition|Corollary|Remark|Lemma|Equation|Figure|Fig\.|Section|Chapter|Table|eq\.)\s*\(?\d+\.\d+\)?",
    re.IGNORECASE,
)
ROLE = re.compile(r"\{(?!math)[\w:-]+\}`[^`]*`")  # references, citations, downloads; math roles are prose
LINK = re.compile(r"\]\([^)]*\)|https?://\S+")


def without_code(text: str) -> str:
    """A page's source without front matter, code cells, included code, options and labels of directives."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    lines: list[str] = []
    closing = ""
    in_options = False
    for line in text.splitlines():
        if closing:
            closing = "" if line.strip() == closing else closing
            continue
        fence = FENCE.match(line.strip())
        if fence and fence[2] in {"code-cell", "literalinclude", "code-block"}:
            closing = fence[1]
            continue
        if fence:
            lines.append(fence[3])
            in_options = True
            continue
        if in_options and re.match(r":[\w-]+:", line.strip()):
            continue
        in_options = False
        lines.append(line)
    return "\n".join(lines)


def _captions(page: str) -> str:
    """Captions and alternative texts, which stand in the metadata of code cells."""
    texts: list[str] = []
    for cell in rendered.executed(page).cells:
        metadata = cell.metadata.get("mystnb", {})
        texts += [metadata.get("figure", {}).get("caption", ""), metadata.get("image", {}).get("alt", "")]
    return "\n".join(texts)


def decimals(text: str) -> list[str]:
    """Numbers with two or more decimals in a text, TeX and thousands separators undone."""
    text = NAMES.sub(" ", LINK.sub(" ", ROLE.sub(" ", text)))
    text = text.replace("{,}", "").replace(r"\,", "")
    text = re.sub(r"\b(\d{1,3}(?:,\d{3})+)(?=\.\d)", lambda match: match[1].replace(",", ""), text)
    return DECIMAL.findall(text)


def said(page: str) -> list[str]:
    """Decimals in everything that a reader reads as text on this page."""
    text = without_code(rendered.source(page))
    return decimals(text + "\n" + (_captions(page) if page in rendered.NOTEBOOKS else ""))


def _output_text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    return "\n".join(
        str(data.get(kind, "")) for kind in ("text/plain", "text/html", "text/markdown", "text/latex")
    )


def computed(page: str) -> set[str]:
    """Decimals in the code of the page's cells and in what they printed.

    A number that a cell asserts with ``says`` may stand in the prose with fewer digits.
    """
    if page not in rendered.NOTEBOOKS:
        return set()
    texts: list[str] = []
    for cell in rendered.executed(page).cells:
        if cell.cell_type == "code":
            texts += [cell.source, *(_output_text(output) for output in cell.outputs)]
    joined = "\n".join(texts).replace("_", "")
    found = set(re.findall(r"(?<![\d.])\d+\.\d{2,}(?!\.?\d)", joined))
    asserted = re.findall(r"says\(.*[\"'][-\N{MINUS SIGN}]?(\d+\.\d{3,})[\"']\)", joined)
    for number in asserted:
        exact = Decimal(number)
        found |= {str(round(exact, digits)) for digits in range(2, -int(exact.as_tuple().exponent))}
    return found
