"""The live figures in a browser, from a file on disk, with the network cut: keyboard, voice, table, phone."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Locator

from tests.conftest import ROOT
from tests.site.browser import Visit
from tests.site.figures_kit import KINDS, bundle

STYLE = (ROOT / "book" / "_static" / "live-figure.css").read_text(encoding="utf-8")
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Figures</title>
<meta name="viewport" content="width=device-width"><style>
body {{ margin: 0 auto; padding: 12px; max-width: 720px; font: 17px/1.5 system-ui, sans-serif; }}
body {{ color: #222832; background: white; }}
@media (max-width: 480px) {{ body {{ padding: 12px 32px; }} }}
html[data-theme=dark] {{ --method-sam: #cc2909; }}
{style}</style><script defer src="live.js"></script></head>
<body><main><h1>Figures</h1>{figures}</main></body></html>"""
PLAYED = {
    "probes": "refits",
    "race": "steps",
    "road": "step",
    "steer": "shown",
    "twoweight": "sweep",
    "valley": "steps",
}
HANDLES = {
    "compass": ("g0", "g1"),
    "contrast": ("hbar", "h"),
    "cycle": ("x",),
    "filter": ("w",),
    "graphwalk": ("x",),
    "race": ("w0", "w1"),
    "ravine": ("w0", "w1"),
    "rulers": ("w",),
    "samstep": ("w0", "w1"),
    "trap": ("x", "y"),
    "twin": ("a",),
    "twoweight": ("w0", "w1"),
    "valley": ("x", "y"),
}


def write(place: Path, figures: str, kinds: tuple[str, ...]) -> Path:
    """A page as the site writes it: pictures in place, one deferred script."""
    place.mkdir()
    (place / "live.js").write_text(bundle.bundle(kinds), encoding="utf-8")
    (place / "index.html").write_text(PAGE.format(style=STYLE, figures=figures), encoding="utf-8")
    return place / "index.html"


@pytest.fixture(scope="module")
def all_figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    blocks = ""
    for kind in KINDS:
        svg, sentence = bundle.fallback(kind, {})
        blocks += (
            f'<figure class="live" id="fig-{kind}"><live-figure kind="{kind}">{svg}'
            f'<p class="lf-sentence">{html.escape(sentence)}</p></live-figure>'
            f"<figcaption>A caption that says what {kind} shows.</figcaption></figure>"
        )
    return write(tmp_path_factory.mktemp("site") / "all", blocks, KINDS)


class Sheet:
    """One figure on a visited page."""

    def __init__(self, visit: Visit, kind: str) -> None:
        self.visit, self.page, self.kind = visit, visit.page, kind
        self.node = visit.page.locator(f"live-figure[kind={kind}]")
        self.node.scroll_into_view_if_needed()
        visit.page.wait_for_selector(f"live-figure[kind={kind}].lf-on", state="attached")
        visit.page.emulate_media(reduced_motion="no-preference")

    def find(self, selector: str) -> Locator:
        return self.node.locator(selector)

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def state(self) -> dict[str, Any]:
        self.settle()
        found: dict[str, Any] = self.node.evaluate("figure => ({ ...figure.state })")
        return found

    def press(self, *keys: str) -> dict[str, Any]:
        for key in keys:
            self.page.keyboard.press(key)
        return self.state()

    def sentence(self) -> str:
        self.settle()
        return self.find(".lf-sentence").inner_text()

    def slider(self) -> tuple[Locator, str]:
        """The first slider in sight, and the name of what it moves."""
        slider = self.find("input[type=range]:visible").first
        return slider, str(slider.get_attribute("id")).partition("-")[2]


@pytest.fixture(scope="module")
def desk(browser: Browser, all_figures: Path) -> Iterator[Visit]:
    visit = Visit(browser, all_figures, width=780)
    yield visit
    visit.close()


@pytest.fixture(scope="module")
def phone(browser: Browser, all_figures: Path) -> Iterator[Visit]:
    visit = Visit(browser, all_figures, width=360)
    yield visit
    visit.close()


@pytest.fixture(params=KINDS)
def sheet(request: pytest.FixtureRequest, desk: Visit) -> Iterator[Sheet]:
    """Each figure in turn; what a test did to it is undone, and nobody may have complained."""
    one = Sheet(desk, request.param)
    yield one
    one.node.evaluate("figure => figure.reset()")
    one.settle()
    assert desk.complaints == []


def test_keyboard_moves_a_value_and_the_voice_says_so_when_the_hand_rests(sheet: Sheet) -> None:
    first, opening = sheet.state(), sheet.sentence()
    assert opening == bundle.fallback(sheet.kind, {})[1]
    slider, name = sheet.slider()
    slider.focus()
    low = sheet.press("Home")[name]
    one = sheet.press("ArrowRight")[name]
    eleven = sheet.press("Shift+ArrowRight")[name]
    high = sheet.press("End")[name]
    assert low < one < eleven <= high
    sheet.press("Home")
    sheet.find(".lf-voice").evaluate("node => { node.textContent = ''; }")
    assert sheet.press("ArrowRight")[name] == one
    assert sheet.find(".lf-voice").inner_text() == "", "the voice speaks before the hand rests"
    fragment = f"#fig=fig-{sheet.kind}&{name}={one:g}"
    sheet.page.wait_for_function("start => location.hash.startsWith(start)", arg=fragment, timeout=3000)
    if sheet.sentence() != opening:
        assert sheet.find(".lf-voice").inner_text() != ""
    assert sheet.press("r") == first
    assert sheet.sentence() == opening
    sheet.page.wait_for_function("() => location.hash === ''", timeout=3000)


def test_some_control_changes_the_spoken_sentence(sheet: Sheet) -> None:
    opening, heard = sheet.sentence(), set()
    for slider in sheet.find("input[type=range]:visible").all():
        slider.focus()
        sheet.press("Home")
        heard.add(sheet.sentence())
        sheet.press("r")
    assert heard - {opening}


def test_values_open_as_a_table(sheet: Sheet) -> None:
    button, table = sheet.find("button[aria-expanded]"), sheet.find(".lf-table table")
    assert button.get_attribute("aria-expanded") == "false"
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert table.is_visible()
    assert table.locator("tbody tr").count() >= 2
    assert table.locator("caption").count() == 1
    button.press("Enter")
    assert not table.is_visible()


def test_reset_button_undoes_everything(sheet: Sheet) -> None:
    first = sheet.state()
    for slider in sheet.find("input[type=range]:visible").all()[:4]:
        slider.focus()
        sheet.press("End")
    assert sheet.state() != first
    sheet.find(
        "button",
    ).get_by_text("Reset", exact=True).click()
    assert sheet.state() == first


@pytest.mark.parametrize("sheet", HANDLES, indirect=True)
def test_handle_is_a_slider_for_hand_and_keyboard(sheet: Sheet) -> None:
    names, handle, first = HANDLES[sheet.kind], sheet.find(".lf-handle"), sheet.state()
    assert handle.get_attribute("role") == "slider"
    assert handle.get_attribute("aria-label")
    handle.focus()
    left = sheet.press("ArrowLeft")[names[0]]
    assert left < first[names[0]]
    assert float(handle.get_attribute("aria-valuenow") or "nan") == left
    if len(names) == 2:
        assert sheet.press("ArrowDown")[names[1]] < first[names[1]]
    assert sheet.press("End")[names[0]] >= first[names[0]]
    assert sheet.press("r") == first
    box = handle.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 44
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    sheet.page.mouse.move(x, y)
    sheet.page.mouse.down()
    sheet.page.mouse.move(x - 15, y + 12, steps=3)
    sheet.page.mouse.up()
    assert sheet.state()[names[0]] < first[names[0]]
    assert handle.evaluate("node => getComputedStyle(node).touchAction") == "none"
    assert sheet.find(".lf-picture").evaluate("node => getComputedStyle(node).touchAction") == "auto"


@pytest.mark.parametrize("sheet", PLAYED, indirect=True)
def test_play_is_silent_pauses_and_without_motion_is_drawn_finished(sheet: Sheet) -> None:
    name, button, voice = PLAYED[sheet.kind], sheet.find(".lf-buttons button").first, sheet.find(".lf-voice")
    label, end = button.inner_text(), sheet.state()
    voice.evaluate("node => { node.textContent = ''; }")
    button.click()
    assert button.inner_text() == "Pause"
    sheet.page.wait_for_timeout(500)
    assert voice.inner_text() == ""
    sheet.slider()[0].focus()
    stopped = sheet.press(" ")[name]
    assert button.inner_text() == label
    sheet.page.wait_for_timeout(150)
    assert sheet.state()[name] == stopped
    sheet.page.emulate_media(reduced_motion="reduce")
    button.click()
    assert sheet.state()[name] == {"steer": 2 * end.get("n", 0), "valley": 1000}.get(sheet.kind, end[name])
    assert button.inner_text() == label


TEXTS = """figure => {
  const svg = figure.querySelector('svg'), frame = svg.getBoundingClientRect();
  const scale = frame.width / svg.viewBox.baseVal.width;
  return { frame: [frame.width, frame.height], texts: [...svg.querySelectorAll('text')].map(node => {
    const box = node.getBoundingClientRect();
    return { words: node.textContent, size: parseFloat(node.getAttribute('font-size')) * scale,
             left: box.left - frame.left, right: box.right - frame.left,
             top: box.top - frame.top, bottom: box.bottom - frame.top };
  }) };
}"""


def assert_readable(figure: Locator) -> None:
    """Every text at least 12 px, inside the picture, and clear of every other."""
    found = figure.evaluate(TEXTS)
    across, down = found["frame"]
    for i, one in enumerate(found["texts"]):
        assert one["size"] >= 11.99
        assert min(one["left"], one["top"]) >= -3, f"{one} leaves the picture"
        assert one["right"] <= across + 3, f"{one} leaves the picture, {across} wide"
        assert one["bottom"] <= down + 3, f"{one} leaves the picture, {down} high"
        for two in found["texts"][:i]:
            wide = min(one["right"], two["right"]) - max(one["left"], two["left"])
            high = min(one["bottom"], two["bottom"]) - max(one["top"], two["top"])
            assert wide < 3 or high < 6, f"{one['words']!r} and {two['words']!r} overlap"


def test_text_is_readable_on_a_desk(sheet: Sheet) -> None:
    sheet.settle()
    assert_readable(sheet.node)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_readable_on_a_phone(phone: Visit, kind: str) -> None:
    sheet = Sheet(phone, kind)
    assert_readable(sheet.node)
    assert phone.ask("() => document.documentElement.scrollWidth") <= 360
    small = sheet.node.evaluate(
        "figure => [...figure.querySelectorAll('button, select, input[type=range]')]"
        ".filter(n => n.offsetParent && n.getBoundingClientRect().height < 44).map(n => n.outerHTML)"
    )
    assert small == []
    assert phone.complaints == []


def test_address_opens_a_setting_and_follows_links(desk: Visit) -> None:
    sheet = Sheet(desk, "cycle")
    desk.ask("() => { location.hash = '#fig=cycle&h=6.5&alpha=1'; }")
    sheet.page.wait_for_function("() => document.querySelector('[kind=cycle]').state.h === 6.5", timeout=3000)
    assert sheet.state()["alpha"] == "1"
    desk.ask("() => { location.hash = '#fig=fig-cycle&h=2'; }")
    sheet.page.wait_for_function("() => document.querySelector('[kind=cycle]').state.h === 2", timeout=3000)
    assert sheet.state()["alpha"] == "0"
    sheet.node.evaluate("figure => figure.reset()")


@pytest.fixture
def asked(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    """Two figures, each with a question before it."""
    question = "Start farther away. Where does it end? | in a wider cycle | in the same cycle"
    blocks = "".join(
        f'<figure class="live" id="fig-{kind}"><live-figure kind="{kind}" data-ask="{question}"></live-figure></figure>'
        for kind in ("cycle", "filter")
    )
    visit = Visit(browser, write(tmp_path / "asked", blocks, ("cycle", "filter")), width=780)
    yield visit
    assert visit.complaints == []
    visit.close()


def test_a_question_comes_before_the_figure_moves(asked: Visit) -> None:
    sheet = Sheet(asked, "cycle")
    first, box = sheet.state(), sheet.find(".lf-ask")
    question = box.evaluate(
        "node => document.getElementById(node.getAttribute('aria-labelledby')).textContent"
    )
    assert question == "Start farther away. Where does it end?"
    assert box.locator("button").all_inner_texts() == ["in a wider cycle", "in the same cycle", "Skip"]
    assert sheet.find("input:visible, select:visible").count() == 0
    assert sheet.find(".lf-handle").count() == 0
    box.locator("button").first.focus()
    assert sheet.press("r", "ArrowRight", "End") == first
    height = sheet.node.bounding_box()
    violations = Axe().run(asked.page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [violation["id"] for violation in violations] == []
    box.locator("button").nth(1).press("Enter")
    sheet.settle()
    assert box.count() == 0
    assert sheet.find(".lf-said").inner_text() == "You said: in the same cycle"
    after = sheet.node.bounding_box()
    assert height is not None
    assert after is not None
    assert abs(after["height"] - height["height"]) < 60, "the page jumps"
    assert sheet.find(".lf-handle").count() == 1
    assert sheet.node.evaluate("figure => figure.contains(document.activeElement)"), "the focus is lost"
    slider, name = sheet.slider()
    slider.focus()
    assert sheet.press("Home")[name] < first[name]
    assert Sheet(asked, "filter").find(".lf-ask").count() == 1, "one answer opens one figure"


def test_a_question_can_be_passed_over(asked: Visit) -> None:
    sheet = Sheet(asked, "filter")
    sheet.find(".lf-ask button").last.click()
    sheet.settle()
    assert sheet.find(".lf-said").inner_text() == ""
    slider, name = sheet.slider()
    slider.focus()
    assert sheet.press("Home")[name] < sheet.press("End")[name]


def test_an_address_that_brings_a_state_is_beyond_the_question(asked: Visit) -> None:
    sheet = Sheet(asked, "cycle")
    assert sheet.find(".lf-ask").count() == 1
    asked.ask("() => { location.hash = '#fig=fig-cycle&h=2'; }")
    asked.page.wait_for_function("() => document.querySelector('[kind=cycle]').state.h === 2", timeout=3000)
    assert sheet.find(".lf-ask").count() == 0
    asked.page.reload()
    asked.page.wait_for_selector("live-figure[kind=cycle].lf-on")
    assert sheet.state()["h"] == 2
    assert sheet.find(".lf-ask").count() == 0
    assert Sheet(asked, "filter").find(".lf-ask").count() == 1


def test_nothing_moves_before_it_is_asked_to(desk: Visit) -> None:
    sheet = Sheet(desk, "road")
    sheet.settle()
    picture = sheet.find(".lf-picture > svg").inner_html()
    sheet.page.wait_for_timeout(400)
    assert sheet.find(".lf-picture > svg").inner_html() == picture


def test_start_page_road_runs_unless_motion_is_unwelcome(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path / "road", '<live-figure kind="road" autoplay="yes"></live-figure>', ("road",))
    visit = Visit(browser, path)  # which prefers reduced motion
    visit.page.wait_for_selector(".lf-on")
    visit.page.wait_for_timeout(200)
    assert visit.ask("() => document.querySelector('live-figure').state.step") == 3000
    assert not visit.ask("() => document.querySelector('live-figure').playing")
    visit.page.emulate_media(reduced_motion="no-preference")
    visit.page.reload()
    visit.page.wait_for_function("() => document.querySelector('live-figure').playing", timeout=5000)
    visit.page.wait_for_function("() => document.querySelector('live-figure').state.step > 0", timeout=5000)
    assert visit.complaints == []
    visit.close()


def test_without_javascript_every_picture_stands(browser: Browser, all_figures: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 780, "height": 900})
    page = context.new_page()
    page.goto(all_figures.as_uri())
    for kind in KINDS:
        picture = page.locator(f"live-figure[kind={kind}] > svg")
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 600
        assert (
            picture.get_attribute("aria-label")
            == page.locator(f"[kind={kind}] > .lf-sentence").text_content()
        )
    context.close()


def test_print_shows_the_picture_and_no_controls(desk: Visit) -> None:
    sheet = Sheet(desk, "cycle")
    sheet.page.emulate_media(media="print")
    assert sheet.find(".lf-picture > svg").is_visible()
    assert not sheet.find(".lf-controls").is_visible()
    assert not sheet.find(".lf-buttons").is_visible()
    sheet.page.emulate_media(media="screen")


def test_colors_follow_the_theme(desk: Visit) -> None:
    sheet = Sheet(desk, "cycle")
    stroke = "figure => getComputedStyle(figure.querySelector('svg [stroke*=method-sam]')).stroke"
    assert sheet.node.evaluate(stroke) == "rgb(139, 40, 12)"
    desk.look("dark", 780)
    assert sheet.node.evaluate(stroke) == "rgb(204, 41, 9)"
    desk.look("light", 780)


def test_all_figures_pass_axe_with_a_table_open(desk: Visit) -> None:
    sheet = Sheet(desk, "twoweight")
    sheet.find("button[aria-expanded]").click()
    violations = Axe().run(desk.page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in violations] == []
    sheet.find("button[aria-expanded]").click()


def test_a_change_is_drawn_within_a_few_frames(sheet: Sheet) -> None:
    """Loosely, for machines are shared: what a quiet one needs is under 8 ms."""
    times = sheet.node.evaluate(
        "figure => Array.from({ length: 12 }, () => {"
        "  const start = performance.now(); figure.draw(); return performance.now() - start; })"
    )
    assert min(times) < 50
