"""Chromium, and pages in it that may say nothing on the console and request nothing."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from obscura_jax.look.assemble import look_page

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (  # Chromium's own requests would not be those of the page, but nor does a test need them
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """Files opened in the browser, and what their pages said and requested."""

    browser: object
    folder: Path
    said: list = field(default_factory=list)
    requested: list = field(default_factory=list)
    contexts: list = field(default_factory=list)

    def __call__(self, data, *, fragment="", width=1440, height=900, ready=True, **how):
        """Open the page of `data`, and return it once all views are there."""
        return self.html(
            look_page(data), fragment=fragment, width=width, height=height, ready=ready, **how
        )

    def html(self, html, *, fragment="", width=1440, height=900, ready=True, **how):
        """Open a file of HTML."""
        path = self.folder / f"look{len(self.contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = self.browser.new_context(viewport={"width": width, "height": height}, **how)
        self.contexts.append(context)
        context.set_default_timeout(0)  # a busy machine is slow, not wrong
        context.on("request", lambda request: self.requested.append(request.url))
        context.on("console", lambda message: self.said.append(message.text))
        context.on("weberror", lambda error: self.said.append(str(error.error)))
        page = context.new_page()
        address = path.as_uri()
        page.goto(address + fragment)
        if ready:
            page.locator("html[data-ready]").wait_for()
        return page

    def strangers(self):
        """Return the requests for anything but the files that were opened."""
        own = [(self.folder / f"look{n}.html").as_uri() for n in range(len(self.contexts))]
        return [url for url in self.requested if url.split("#")[0] not in own and url != "data:,"]


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens data; at the end, no page may have said or requested anything."""
    pages = Opened(browser, tmp_path)
    yield pages
    for context in pages.contexts:
        context.close()
    assert pages.said == []
    assert pages.strangers() == []
