"""A figure's SVG file as an element of the page, when the book is built and when a cell runs in the page.

Inside the page its text can be read and found, and the style sheet can recolor it: every color of
llqr_sam_ref.figures.style becomes a CSS variable that changes with the theme (text takes the text variant
of a method's color). Ids are made unique to the figure, since matplotlib numbers them from one in every file.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET

from llqr_sam_ref.figures import style

LINE_COLORS = {
    **{method.light: f"--method-{key.replace('_', '-')}" for key, method in reversed(style.METHODS.items())},
    style.INK: "--figure-ink",
    style.GRID: "--figure-grid",
    "#000000": "--figure-ink",
    "#ffffff": "--figure-page",
}
TEXT_COLORS = {
    **LINE_COLORS,
    **{
        color: f"--method-{key.replace('_', '-')}-text"
        for key, method in reversed(style.METHODS.items())
        for color in (method.light, method.text_light)
    },
}
COLOR = re.compile(r"#[0-9a-fA-F]{6}\b")


def inline(svg: str, alt: str) -> str:
    """The SVG file's text as an element that can stand in an HTML page."""
    svg = re.sub(r"<!DOCTYPE[^>]*>", "", svg)  # Chromium and ElementTree need none
    root = ET.fromstring(svg)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8] + "-"
    for parent in root.iter():
        for child in list(parent):
            if _name(child.tag) in {"metadata", "style", "title"}:
                parent.remove(child)
    used = _used_ids(root)
    for element in root.iter():
        element.tag = _name(element.tag)
        colors = TEXT_COLORS if element.tag in {"text", "tspan"} else LINE_COLORS
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                if value in used:
                    element.set("id", prefix + value)
                continue
            value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", value)
            if _name(key) == "href":
                value = re.sub(r"^#", f"#{prefix}", value)
            if key in {"style", "fill", "stroke"}:
                value = COLOR.sub(lambda match, colors=colors: _variable(match[0], colors), value)
            element.set(_name(key), value)
    # text elements without a color of their own are black in SVG
    width = float(re.match(r"[\d.]+", root.attrib.pop("width", "720"))[0])  # type: ignore[index]
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.set("class", "figure-svg")
    root.set("style", f"max-width: {width * 720 / 518.4:.0f}px")  # 7.2 in are the 720 px of the column
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _name(tag: str) -> str:
    """A tag or attribute without its XML namespace (HTML knows SVG by itself)."""
    return tag.rpartition("}")[2]


def _used_ids(root: ET.Element) -> set[str]:
    text = " ".join(value for element in root.iter() for value in element.attrib.values())
    return set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r"(?:^| )#([\w.-]+)", text))


def _variable(color: str, colors: dict[str, str]) -> str:
    name = colors.get(color.lower())
    return f"var({name}, {color})" if name else color
