"""What a reader does with a page that runs: out of order, with changes, with mistakes, by keyboard, on a phone."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, expect

from tests.live.conftest import Live

PAGE = "book/sam/cycle"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
SAME_LINES = """() => [...document.querySelectorAll('.live-editor')].filter(box => box.offsetParent).map(box => {
    const [pre, field] = box.children;
    return [field.scrollHeight - pre.clientHeight, field.clientWidth - pre.clientWidth];
})"""


@pytest.fixture
def live(browser: Browser, address: str) -> Iterator[Live]:
    opened = Live(browser, address, PAGE)
    yield opened
    assert not opened.complaints
    opened.close()


def test_nothing_comes_before_the_press(live: Live, site: Path) -> None:
    live.page.wait_for_load_state("networkidle")
    came = [url.partition("?")[0] for url in live.requests if "/_live/" in url]
    assert sorted(Path(url).name for url in came) == ["button.js", "live.css"]
    assert sum(len(gzip.compress((site / url.lstrip("/")).read_bytes())) for url in came) < 3000


def test_a_cell_runs_those_above_it_once(live: Live) -> None:
    live.press(1)
    live.write(1, "count = globals().get('count', 0) + 1\nprint(count)")
    live.write(2, "print('third', count)")
    live.press(2)
    assert live.shows(1)["texts"] == ["1\n"]
    live.press(2)
    assert live.shows(2)["texts"] == ["third 1\n"]
    live.press(1)  # again: what stands below has to run again before anything below it
    live.write(3, "print('fourth', count)")
    live.press(3)
    assert live.shows(2)["texts"] == ["third 2\n"]
    assert live.shows(3)["texts"] == ["fourth 2\n"]


def test_an_error_is_an_error_and_stops_what_is_below(live: Live) -> None:
    live.press(0)
    live.write(1, "def half(x):\n    return x / 0\n\nprint('before')\nhalf(1)")
    before = live.shows(2)
    live.press(2)
    shown = live.shows(1)
    assert shown["texts"] == ["before\n"]
    (traceback,) = shown["errors"]
    assert traceback.startswith('Traceback (most recent call last):\n  File "<cell 2>", line 5, in <module>')
    assert "    return x / 0" in traceback
    assert traceback.endswith("ZeroDivisionError: division by zero\n")
    assert live.status() == "Cell 2 failed. ZeroDivisionError: division by zero"
    assert live.shows(2) == before
    live.write(1, "h = 4.0 +")
    live.press(1)
    assert "SyntaxError" in live.shows(1)["errors"][0]


def test_reset_brings_back_code_and_output(live: Live) -> None:
    code = live.page.locator("div.cell").nth(1).locator(".cell_input pre")
    built, shown = code.inner_html(), live.shows(1)
    live.press(1)
    live.write(1, "print('mine')")
    live.press(1)
    assert live.shows(1)["texts"] == ["mine\n"]
    live.page.get_by_role("button", name="Reset cell 2").click()
    assert (code.inner_html(), live.shows(1)) == (built, shown)
    live.write(2, "print('mine too')")
    live.press(2)
    live.page.get_by_role("button", name="Reset all").click()
    expect(live.page.locator(".live-reset:visible")).to_have_count(0)
    live.press(2)
    assert "eta h = 0.40: measured 0.025000" in live.shows(2)["texts"][0]


def test_stop_ends_what_would_not_end(live: Live) -> None:
    live.press(0)
    live.write(1, "print('on it')\nwhile True:\n    pass")
    cell = live.page.locator("div.cell").nth(1)
    cell.locator(".live-run").click()
    expect(cell.locator(".cell_output")).to_contain_text("on it")  # what is printed comes while it runs
    expect(cell.locator(".live-run")).to_have_text("Stop")
    live.page.locator(".live-bar").get_by_role("button", name="Stop").click()
    live.rest()
    assert "Stopped" in live.shows(1)["texts"][0]
    live.write(1, "print(math.pi, np.pi)")  # another Python, to which the cell above has to speak first
    live.press(1)
    assert live.shows(1)["texts"] == ["3.141592653589793 3.141592653589793\n"]


def test_the_end_of_python_is_not_the_end_of_the_page(live: Live) -> None:
    live.press(0)
    live.write(1, "import sys\nsys.exit(3)")
    live.press(1)
    assert "SystemExit: 3" in live.shows(1)["errors"][0]
    live.write(1, "import os\nos._exit(3)")
    live.press(1)
    assert "Python has ended" in live.shows(1)["errors"][0]
    live.write(1, "print(math.pi)")
    live.press(1)
    assert live.shows(1)["texts"] == ["3.141592653589793\n"]


def test_the_last_value_is_shown_as_in_a_notebook(live: Live) -> None:
    live.press(0)
    live.write(1, "np.eye(2)")
    live.press(1)
    assert live.shows(1)["texts"] == ["array([[1., 0.],\n       [0., 1.]])\n"]
    live.write(1, "from llqr_sam_ref.figures import Table\nTable(['a'], [['b']])")
    live.press(1)
    assert [text.split() for text in live.shows(1)["texts"]] == [["a", "b"]]
    live.write(1, "fig, ax = new_figure()\nax.plot([1, 2])")
    live.press(1)
    ((_, name),) = live.shows(1)["figures"]
    assert name == "Figure drawn by the code above, as changed"


def test_by_keyboard_alone(live: Live) -> None:
    page = live.page
    page.locator("div.cell").nth(1).locator(".live-run").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".live-bar button")
    live.rest()
    field = page.get_by_label("Code of cell 2.")
    for _ in range(3):  # the button that copies may lie between
        page.keyboard.press("Shift+Tab")
        if field.evaluate("field => field === document.activeElement"):
            break
    expect(field).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("for i in (1, 2):")
    page.keyboard.press("Enter")
    page.keyboard.type("print(i)")
    page.keyboard.press("Shift+Enter")
    live.rest()
    assert live.shows(1)["texts"] == ["1\n2\n"]
    reset = page.get_by_role("button", name="Reset cell 2")
    for _ in range(4):
        page.keyboard.press("Tab")
        if reset.evaluate("button => button === document.activeElement"):
            break
    expect(reset).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_a_page_that_runs(live: Live, theme: str) -> None:
    live.press(1)
    live.write(1, "print(undefined)")
    live.press(1)
    live.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    live.page.evaluate("() => document.querySelectorAll('.katex-html').forEach(e => e.remove())")
    options = {"runOnly": RULES, "resultTypes": ["violations"], "preload": False}
    violations = Axe().run(live.page, context=".bd-article", options=options).response["violations"]
    assert not [(item["id"], node["target"]) for item in violations for node in item["nodes"]]


@pytest.mark.parametrize("width", [1400, 768, 360])
def test_nothing_is_cut_and_letters_lie_on_letters(browser: Browser, address: str, width: int) -> None:
    live = Live(browser, address, PAGE, width)
    live.press(1)
    assert live.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
    lines = live.page.evaluate(SAME_LINES)
    assert lines
    assert not [line for line in lines if line != [0, 0]]
    live.close()


def test_without_the_network_the_button_says_so(browser: Browser, address: str) -> None:
    live = Live(browser, address, PAGE)
    live.page.wait_for_load_state("networkidle")
    live.context.set_offline(True)
    cell = live.page.locator("div.cell").nth(1)
    cell.locator(".live-run").click()
    expect(cell.get_by_role("alert")).to_contain_text("Python could not be loaded")
    live.context.set_offline(False)
    live.press(1)
    assert live.shows(1)["texts"]
    live.close()


def test_a_page_opened_from_disk_has_no_button(browser: Browser, site: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto((site / f"{PAGE}.html").as_uri())
    assert page.locator(".live-run").count() == 0
    context.close()
