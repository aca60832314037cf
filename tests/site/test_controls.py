"""The controls around a page do what they say, with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests import rendered
from tests.site.browser import Visit

FOCUSED = """() => {
    const node = document.activeElement, { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
    return { tag: node.tagName, name: node.className + '', words: node.textContent.trim(),
             seen: (outlineStyle !== 'none' && parseFloat(outlineWidth) > 0) || boxShadow !== 'none' };
}"""


BESIDE = """beside => {
    const { width, right } = document.querySelector('#pst-primary-sidebar').getBoundingClientRect();
    return beside === (width > 0 && right > 0);
}"""


@pytest.fixture
def chapter(browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser, rendered.build() / "book/sam/cycle.html", width=1300)
    yield visit
    assert visit.complaints == []
    visit.close()


def tab_to(visit: Visit, selector: str, most: int = 150) -> None:
    """Press Tab until the focus is there."""
    for _ in range(most):
        visit.page.keyboard.press("Tab")
        if visit.ask(f"() => document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_the_first_tab_offers_to_skip_what_is_the_same_on_every_page(chapter: Visit) -> None:
    chapter.page.keyboard.press("Tab")
    assert chapter.ask(FOCUSED)["words"] == "Skip to main content"
    chapter.page.keyboard.press("Enter")
    assert chapter.page.url.endswith("#main-content")


def test_whoever_walks_through_a_page_sees_where_they_are(chapter: Visit) -> None:
    """From the buttons at the top through the text, its figure and its folds: each stop is marked."""
    tab_to(chapter, ".article-header-buttons button")
    stops = []
    for _ in range(60):
        stops.append(chapter.ask(FOCUSED))
        chapter.page.keyboard.press("Tab")
    assert {stop["tag"] for stop in stops} >= {"BUTTON", "A"}
    assert [stop for stop in stops if not stop["seen"]] == []


def test_the_color_of_the_page_is_switched(chapter: Visit) -> None:
    for theme in ("dark", "light"):
        chapter.page.keyboard.press("Shift+Tab")  # the theme's buttons give the focus away
        tab_to(chapter, ".theme-switch-button")
        chapter.page.keyboard.press("Enter")
        chapter.page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)


def test_the_downloads_unfold_and_lead_to_files(chapter: Visit) -> None:
    tab_to(chapter, ".dropdown-download-buttons button")
    menu = chapter.page.locator(".dropdown-download-buttons .dropdown-menu")
    assert not menu.is_visible()
    chapter.page.keyboard.press("Enter")
    menu.wait_for(state="visible")
    for link in menu.locator("a").all():
        target = (rendered.build() / "book/sam" / str(link.get_attribute("href"))).resolve()
        assert target.is_file()
    assert menu.locator("a").count() == 2
    chapter.page.keyboard.press("Escape")
    menu.wait_for(state="hidden")


def test_proofs_and_solutions_unfold_where_they_are(chapter: Visit) -> None:
    folded = chapter.page.locator("div.dropdown.toggle-hidden")
    before = folded.count()
    assert before > 4
    tab_to(chapter, "button.toggle-button")
    chapter.page.keyboard.press("Enter")
    assert folded.count() == before - 1
    chapter.page.keyboard.press("Enter")
    assert folded.count() == before


def test_the_search_opens_takes_a_word_and_finds_it(chapter: Visit) -> None:
    chapter.page.keyboard.press("Control+k")
    field = chapter.page.locator("#pst-search-dialog input")
    field.wait_for(state="visible")
    chapter.page.keyboard.type("costate")
    chapter.page.keyboard.press("Enter")
    chapter.page.wait_for_selector("#search-results li a", timeout=10_000)
    targets = [str(link.get_attribute("href")) for link in chapter.page.locator("#search-results li a").all()]
    assert any("book/llqr/" in target for target in targets)


def test_the_contents_of_the_book_can_be_put_away(chapter: Visit) -> None:
    sidebar = chapter.page.locator("#pst-primary-sidebar")
    assert sidebar.is_visible()
    tab_to(chapter, "button.primary-toggle")
    chapter.page.keyboard.press("Enter")
    chapter.page.wait_for_function(BESIDE, arg=False)
    chapter.page.keyboard.press("Shift+Tab")
    tab_to(chapter, "button.primary-toggle")
    chapter.page.keyboard.press("Enter")
    chapter.page.wait_for_function(BESIDE, arg=True)


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_on_a_phone_the_contents_open_and_lead_on(browser: Browser, side: str) -> None:
    visit = Visit(browser, rendered.build() / "book/sam/cycle.html", width=360)
    links = visit.page.locator(f"#pst-{side}-sidebar-modal a")
    visit.page.locator(f"button.{side}-toggle").locator("visible=true").first.click()
    links.first.wait_for(state="visible")
    assert links.count() > 5
    wanted = links.nth(4)
    target = str(wanted.get_attribute("href")).rpartition("/")[2]
    wanted.click()
    visit.page.wait_for_url(f"**{target}")
    assert visit.complaints == []
    visit.close()


def test_a_question_before_a_figure_is_answered_with_the_keyboard(chapter: Visit) -> None:
    tab_to(chapter, ".lf-ask button")
    chapter.page.keyboard.press("Enter")
    assert chapter.page.locator(".lf-ask").count() == 0
    assert chapter.ask("() => document.activeElement.closest('live-figure') !== null")
    assert chapter.page.locator(".lf-said").inner_text().startswith("You said: ")


def test_print_hides_what_only_works_on_a_screen_and_opens_what_is_folded(chapter: Visit) -> None:
    chapter.page.emulate_media(media="print")
    for selector in (".bd-sidebar-primary", ".bd-header-article", ".lf-board", ".copybtn", ".prev-next-area"):
        for node in chapter.page.locator(selector).all():
            assert not node.is_visible(), selector
    for folded in chapter.page.locator("details pre").all():
        assert folded.bounding_box() is not None
