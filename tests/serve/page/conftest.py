"""A real Chromium before a real server; skipped where playwright or a Chromium is absent."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .driving import DESKTOP, PATIENCE_S, Open
from .server import Service, serving


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """One Chromium a file: Playwright keeps an event loop that other files must not meet."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def service(
    chromium: str, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One server for the tests that leave it running."""
    assert chromium, "nothing is served that no browser looks at"
    with serving(trained, state=tmp_path_factory.mktemp("state")) as started:
        yield started


@pytest.fixture
def open_page(browser: Any, service: Service) -> Iterator[Open]:
    """Open the page; it may say nothing on the console but refusals, and ask no other server."""
    opened, said, fetched = [], [], []

    def visit(
        size: dict[str, int] = DESKTOP, scheme: str = "light", url: str = "", **settings: Any
    ) -> Any:
        tab = browser.new_page(viewport=size, color_scheme=scheme, **settings)
        tab.set_default_timeout(1000 * PATIENCE_S)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: fetched.append((request.url, url or service.url)))
        opened.append(tab)
        tab.goto(url or service.url)
        return tab

    yield visit
    for tab in opened:
        tab.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
    assert {asked for asked, url in fetched if not asked.startswith((url, "blob:"))} == set()
