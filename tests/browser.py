"""A headless browser, for tests that see a page as a user does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 120_000  # a busy machine draws slowly

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; Debian has a package of that name")


class Seen:
    """A page in the browser. complaints: what it wrote to the console, asked of the network, or raised."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {request.url}")

    def open(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@contextmanager
def browser() -> Iterator[Any]:
    """The browser; `seen` opens windows of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS
        )  # root has no sandbox
        try:
            yield launched
        finally:
            launched.close()


def seen(launched: Any, width: int = 1280, height: int = 900, scheme: str = "light") -> Seen:
    """An empty window of this size, for a user who prefers this theme."""
    context = launched.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    context.set_default_timeout(PATIENCE_MS)
    return Seen(context.new_page())
