"""What every Run button shows is what the build computed, cell by cell, on every page that has one.

Numbers are compared to a relative 1e-6, and below 1e-12 not at all: the page has another NumPy, built without BLAS, and
what is printed of a rounding error differs. Words, order and layout are compared as they are, figures by number, size
and caption.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests import rendered
from tests.live.conftest import Live

NUMBER = re.compile(r"[-−+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
BLANKS = re.compile(r"\s*([\[\](),])\s*")  # NumPy pads numbers to the widest
# Lines whose numbers are not a function of the code alone, by page: words and shape are compared.
OWN_NUMBERS = {
    "book/llqr/equivalence": re.compile(r" ms "),  # wall times
    "book/monge/radius": re.compile(
        r"^[24]\s"
    ),  # training that has blown up: rounding errors grow without bound
    "book/sam/saddles": re.compile(
        r"^momentum 0.9, the same rate"
    ),  # a share of chaotic paths, one of them crosses
}
SIZE = 0.02  # relative: letters are measured by another release of the font library


def words(text: str) -> str:
    """A text without its numbers and its padding."""
    return re.sub(r"\s+", " ", BLANKS.sub(r"\1", NUMBER.sub("#", text))).strip()


def numbers(text: str) -> list[float]:
    """The numbers of a text."""
    return [float(number.replace("−", "-")) for number in NUMBER.findall(text)]


def differences(page: str, built: str, here: str) -> list[str]:
    """Where two outputs disagree."""
    if words(built) != words(here):
        return [f"words: {built!r} became {here!r}"]
    own = OWN_NUMBERS.get(page)
    lines = zip(built.splitlines(), here.splitlines(), strict=False)
    if own is not None and len(built.splitlines()) == len(here.splitlines()):
        pairs = [
            pair
            for old, new in lines
            if not own.search(old)
            for pair in zip(numbers(old), numbers(new), strict=True)
        ]
    else:
        pairs = list(zip(numbers(built), numbers(here), strict=True))
    return [
        f"{a!r} became {b!r}" for a, b in pairs if b != pytest.approx(a, rel=1e-6, abs=1e-12, nan_ok=True)
    ]


def size(view_box: str) -> list[float]:
    """Width and height of a figure."""
    return [float(number) for number in view_box.split()[2:]]


@pytest.mark.parametrize("page", rendered.NOTEBOOKS)
def test_every_button_shows_what_the_build_computed(
    browser: Browser, address: str, site: Path, page: str, record_property: pytest.FixtureRequest
) -> None:
    if "/button.js" not in (site / f"{page}.html").read_text("utf-8"):
        pytest.skip("no Run button: something that the page imports is not there")
    begun = time.perf_counter()
    live = Live(browser, address, page)
    built = [live.shows(index) for index in range(live.cells())]
    found = []
    for index, old in enumerate(built):
        live.press(index)
        new = live.shows(index)
        assert not new["errors"], f"cell {index + 1}: {new['errors']}"
        assert len(new["texts"]) == len(old["texts"]), f"cell {index + 1}: {old} became {new}"
        for before, after in zip(old["texts"], new["texts"], strict=True):
            found += [f"cell {index + 1}: {line}" for line in differences(page, before, after)]
        assert len(new["figures"]) == len(old["figures"]), f"cell {index + 1}"
        for (before, alternative), (after, said) in zip(old["figures"], new["figures"], strict=True):
            assert size(after) == pytest.approx(size(before), rel=SIZE), f"cell {index + 1}"
            assert said == alternative
        assert new["captions"] == old["captions"]
    assert not found
    assert not live.complaints
    live.close()
    print(f"{page}: {len(built)} cells, {time.perf_counter() - begun:.1f} s")


def test_some_pages_have_buttons_and_those_that_need_torch_have_none(site: Path) -> None:
    with_button = {
        page for page in rendered.PAGES if "/button.js" in (site / f"{page}.html").read_text("utf-8")
    }
    assert {"book/intro", "book/geometry/steepest", "book/sam/cycle", "book/llqr/clock"} <= with_button
    assert not {
        page for page in with_button if re.search(r"^import torch", rendered.source(page), re.MULTILINE)
    }
    assert with_button <= set(rendered.NOTEBOOKS)


def test_the_page_shows_as_many_cells_as_it_runs(site: Path) -> None:
    (folder,) = (site / "_live").glob("*/pages")
    for path in folder.rglob("*.json.gzip"):
        cells = json.loads(gzip.decompress(path.read_bytes()))["cells"]
        page = path.relative_to(folder).as_posix().removesuffix(".json.gzip")
        assert sum(cell["shown"] for cell in cells) == len(rendered.html(page).select("div.cell"))
