"""A headless Chromium for the tests that look at the site as a reader does."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Playwright, Route

from book.editions import pdf


def launch(playwright: Playwright) -> Browser:
    """Start the Chromium that prints the book."""
    try:
        return pdf.launch(playwright)
    except RuntimeError as missing:
        pytest.skip(str(missing))


class Visit:
    """One page opened from disk, with every request to the network refused and every complaint recorded."""

    def __init__(self, browser: Browser, path: Path, width: int = 1200) -> None:
        """Open the page and wait until its letters are there."""
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, reduced_motion="reduce", color_scheme="light"
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.files: set[Path] = set()
        self.page.route("**/*", self._answer)
        self.page.on("requestfailed", lambda request: self.complaints.append(f"no answer: {request.url}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        self.page.on("console", self._listen)
        self.page.goto(path.as_uri())
        self.page.evaluate("() => document.fonts.ready.then(() => true)")

    def _answer(self, route: Route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            if route.request.url.startswith("file:"):
                self.files.add(Path(unquote(urlparse(route.request.url).path)))
            route.continue_()
        else:
            self.complaints.append(f"request to the network: {route.request.url}")
            route.abort()

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"console: {message.text}")

    def look(self, theme: str, width: int) -> None:
        """Change the theme, as its button does, and the width of the window."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)

    def ask(self, script: str) -> Any:
        """What a script in the page returns."""
        return self.page.evaluate(script)

    def close(self) -> None:
        """Close the page."""
        self.context.close()
