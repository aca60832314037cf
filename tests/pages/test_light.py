"""What pages do not use is not loaded: icons, search, cards."""

from __future__ import annotations

import re
from pathlib import Path

from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

from tests import rendered

LIGHT = rendered.extension("light")
PAGE = """<head>
<link rel="stylesheet" type="text/css" href="../../_static/sphinx-design.min.css?v=1" />
<script defer src="../../_static/scripts/fontawesome.js?digest=2"></script>
<script src="../../_static/searchtools.js"></script>
<script src="../../searchindex.js"></script>
<script data-x="y" src="../../_static/design-tabs.js?v=3"></script>
<script src="../../_static/doctools.js"></script>
</head><header id="pst-header" class="bd-header"><button>Search</button>
</header><i class="fa-solid fa-bars"></i><span class="theme fas fa-file-pdf"></span>"""


def test_a_page_keeps_what_it_uses_and_nothing_else() -> None:
    light = LIGHT.lighter(PAGE, searches=False)
    assert "doctools.js" in light
    assert not any(name in light for name in ("fontawesome", "search", "design", "<button"))
    searching = LIGHT.lighter(PAGE, searches=True)
    assert "searchtools.js" in searching
    assert "searchindex.js" in searching
    cards = LIGHT.lighter(PAGE + '<div class="a sd-card">', searches=False)
    assert "sphinx-design.min.css" in cards
    assert "design-tabs.js" in cards


def test_rules_of_icons_go_and_all_others_stay() -> None:
    style = "/* x */.fa-bars{--fa:1}.fa-bell,.fa-ring{--fa:2}.fa-bell:before{a:b}.bd-main .fa-bell{c:d}p{e:f}"
    assert LIGHT.without_icons(style, {"bars"}) == "/* x */.fa-bars{--fa:1}.bd-main .fa-bell{c:d}p{e:f}"


def test_the_font_has_the_icons_of_the_pages_and_no_others() -> None:
    static = rendered.build() / "_static"
    names = LIGHT.icons_in(path.read_text("utf-8") for path in rendered.build().rglob("book/**/*.html"))
    assert {"bars", "download", "magnifying-glass", "sun"} <= names
    font = TTFont(static / "icons.woff")
    style = (static / "icons.css").read_text("utf-8")
    rules = dict(re.findall(r'\.fa-([\w-]+)::before { content: "\\(\w+)"', style))
    assert rules.keys() == names - {"lg"}
    assert {int(code, 16) for code in rules.values()} <= font.getBestCmap().keys()
    assert len(font.getGlyphOrder()) < 100


def test_no_page_loads_the_program_that_sets_formulas() -> None:
    for page in rendered.CHAPTERS:
        text = (rendered.build() / f"{page}.html").read_text("utf-8")
        assert not re.findall(r"<script[^>]*(?:mathjax|katex)[^>]*>", text, re.IGNORECASE)
    assert not list(Path(rendered.build()).rglob("*mathjax*.js"))


def test_the_cut_font_of_formulas_has_what_the_formulas_use() -> None:
    style = (rendered.ROOT / "book/_extra/_vendor/katex/katex.min.css").read_text("utf-8")
    ranges = re.search(r"KaTeX_AMS-Regular[^}]*unicode-range:([^}]*)}", style)
    assert ranges is not None
    known: set[int] = set()
    for part in ranges[1].split(","):
        first, _, last = part.removeprefix("U+").partition("-")
        known |= set(range(int(first, 16), int(last or first, 16) + 1))
    for page in rendered.CHAPTERS:
        text = (rendered.build() / f"{page}.html").read_text("utf-8")
        used = "".join(re.findall(r'class="[^"]*\b(?:mathbb|amsrm)\b[^"]*">([^<]*)<', text))
        assert set(map(ord, used)) <= known, page
