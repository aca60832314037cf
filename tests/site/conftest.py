"""One browser for all tests of the site."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.site.browser import launch


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A running Chromium; tests that need one are skipped where there is none."""
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()
