"""Pages without what they do not use: the theme's icons as a font of a dozen, and the search where one searches.

The theme loads the whole of Font Awesome (two megabytes) for a dozen icons, and the search index on every page,
though only the search page reads it. Cards and tabs have a style sheet that no page needs. Above the page stands a bar
that repeats the sidebar's search and the page's buttons; the theme's script takes its buttons for those of the page,
so that hiding it would leave the visible ones dead. When the build is done
the icons that some page shows are cut out of Font Awesome's font, and the tags of what is not used are taken out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

SCRIPTS = re.compile(r'\s*<script[^>]*src="[^"]*scripts/fontawesome\.js[^"]*"></script>')
DESIGN = re.compile(
    r"\s*<(?:script[^>]*design-tabs\.js[^>]*></script>|link[^>]*sphinx-design\.min\.css[^>]*/?>)"
)
BAR = re.compile(r'\s*<header id="pst-header".*?</header>', re.DOTALL)
EMPTY_BAR = (
    '\n<header id="pst-header" class="bd-header" style="display: none"></header>'  # the script measures it
)
USES_DESIGN = re.compile(r'class="[^"]*\bsd-')
SOURCE = re.compile(
    r'<annotation encoding="application/x-tex">.*?</annotation>', re.DOTALL
)  # of a formula, a third time
SEARCH = re.compile(r'\s*<script[^>]*src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')
ICON = re.compile(r'class="[^"]*\b(?:fa-solid|fas)\s+fa-([a-z][a-z-]*)')
ICON_RULE = re.compile(r"(?<=[}/])(?:\.fa-[\w-]+(?:::?before|::?after)?,?)+\{[^{}]*\}")
THEME_ICON = re.compile(r'--pst-icon-[\w-]+: *"([^"\\])"')  # the theme's style sheet shows some by itself
STYLE = """\
@font-face { font-family: "Book Icons"; src: url(icons.woff) format("woff"); font-display: block; }
:root { --fa-font-solid: normal 900 1em/1 "Book Icons"; }
:is(.fa-solid, .fas) { font-family: "Book Icons"; }
:is(.fa-solid, .fas)::before { font: 900 1em/1 "Book Icons"; }
"""


def icons_in(pages: Iterable[str]) -> set[str]:
    """Names of the icons that some page shows."""
    return {name for page in pages for name in ICON.findall(page)}


def cut(font: Path, names: Iterable[str], characters: Iterable[str], out: Path) -> str:
    """Write a font of these icons.

    Args:
        font: the whole one, TrueType; its glyphs bear the icons' names.
        names: of the icons; sizes and other classes of the theme are passed over.
        characters: further ones that the theme's style sheet names by their code.
        out: where to write, WOFF.

    Returns:
        The style rules that show them.
    """
    whole = TTFont(font)
    place = {glyph: code for code, glyph in sorted(whole.getBestCmap().items(), reverse=True)}
    codes = {name: place[name] for name in sorted(names) if name in place}
    options = subset.Options()
    options.flavor = "woff"
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes={*codes.values(), *map(ord, characters)})
    subsetter.subset(whole)
    whole.flavor = "woff"
    whole.save(out)
    return STYLE + "".join(
        f'.fa-{name}::before {{ content: "\\{code:x}"; }}\n' for name, code in codes.items()
    )


def without_icons(style: str, names: set[str]) -> str:
    """A style sheet without the rules of icons that no page shows."""

    def kept(rule: re.Match[str]) -> str:
        return rule[0] if names & set(re.findall(r"\.fa-([\w-]+)", rule[0])) else ""

    return ICON_RULE.sub(kept, style)


def lighter(page: str, *, searches: bool) -> str:
    """A page without the tags of what it does not use."""
    page = BAR.sub(EMPTY_BAR, SOURCE.sub("", SCRIPTS.sub("", page)))
    if not USES_DESIGN.search(page):
        page = DESIGN.sub("", page)
    return page if searches else SEARCH.sub("", page)


def _lighten(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    paths = [path for path in out.rglob("*.html") if "_static" not in path.parts]
    whole = {path: path.read_text("utf-8") for path in paths}
    pages = {path: lighter(text, searches=path.name == "search.html") for path, text in whole.items()}
    for path, text in pages.items():
        if text != whole[path]:
            path.write_text(text, "utf-8")
    static = out / "_static"
    font = static / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.ttf"
    theme = static / "styles" / "pydata-sphinx-theme.css"
    style, names = theme.read_text("utf-8"), icons_in(pages.values())
    rules = cut(font, names, THEME_ICON.findall(style), static / "icons.woff")
    (static / "icons.css").write_text(rules, "utf-8")
    theme.write_text(without_icons(style, names), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_css_file("icons.css")
    app.connect("build-finished", _lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
