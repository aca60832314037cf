"""The site with Python in its pages, served on this machine, and a browser that reaches nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

from tests import rendered
from tests.site.conftest import browser as browser  # the same Chromium

CELL = """([index]) => {
    const output = document.querySelectorAll('div.cell')[index].querySelector(':scope > .cell_output');
    if (!output) return { texts: [], figures: [], captions: [], errors: [] };
    const own = selector => [...output.querySelectorAll(selector)];
    return {
        texts: own('.output.stream pre, .text_html, table')
            .filter(e => !e.parentElement.closest('.text_html')).map(e => e.innerText),
        figures: own('svg.figure-svg').map(e => [e.getAttribute('viewBox'), e.getAttribute('aria-label')]),
        captions: own('figcaption').map(e => e.innerText),
        errors: own('.live-error pre').map(e => e.textContent),
    };
}"""
IDLE = """() => document.querySelector('.live-bar button')
    && [...document.querySelectorAll('.live-run')].every(button => button.textContent === 'Run')"""


class Live:
    """A page as a reader has it who presses Run."""

    def __init__(self, browser: Browser, address: str, page: str, width: int = 1200) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="light")
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.address = address
        self.page.route("**/*", self._answer)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        self.page.on("console", self._listen)
        self.page.goto(f"{address}/{page}.html")

    def _answer(self, route: Route) -> None:
        url = route.request.url
        if url.endswith("/favicon.ico"):  # browsers ask for one by themselves
            route.fulfill(status=204)
        elif url.startswith((f"{self.address}/", "blob:", "data:")):
            self.requests.append(url.removeprefix(self.address))
            route.continue_()
        else:
            self.complaints.append(f"request to the network: {url}")
            route.abort()

    def _listen(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"console: {message.text}")

    def cells(self) -> int:
        """How many cells the page shows."""
        return self.page.locator("div.cell").count()

    def shows(self, index: int) -> dict[str, Any]:
        """What stands where the cell's output stands."""
        return dict(self.page.evaluate(CELL, [index]))

    def press(self, index: int, seconds: float = 120) -> None:
        """Press a cell's button, and wait until Python rests."""
        self.page.locator("div.cell").nth(index).locator(".live-run").click()
        self.rest(seconds)

    def rest(self, seconds: float = 120) -> None:
        """Wait until nothing runs or waits."""
        self.page.wait_for_function(IDLE, timeout=1000 * seconds)

    def write(self, index: int, code: str) -> None:
        """Put code into a cell's field, unfolded where it was folded."""
        field = self.page.locator("div.cell").nth(index).locator("textarea")
        field.evaluate("field => field.closest('details')?.setAttribute('open', '')")
        field.fill(code)

    def status(self) -> str:
        """What the strip below says."""
        return self.page.inner_text(".live-bar [role=status]")

    def close(self) -> None:
        """Close the page."""
        self.context.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site, Python included."""
    if os.environ.get("LIVE", "") in {"", "0"}:
        pytest.skip("needs the site with Python in its pages: make live-test, or LIVE=1")
    return rendered.build()


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
