"""A headless Chromium for tests that look at pages, and what a page must not do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def headless_browser() -> Iterator[Any]:
    """Chromium, or a skipped test where there is none (in CI a failed one)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), "")
    if not found:
        assert not os.environ.get("CI"), "CI needs chromium on the PATH to look at pages"
        pytest.skip("no chromium on the PATH to look at pages with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def complaints_of(page: Any) -> list[str]:
    """What the page says on the console, its errors, and whatever it asks of the network."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url)
            if not request.url.startswith(("file:", "data:", "about:srcdoc"))
            else None
        ),
    )
    return complaints


def opened(browser: Any, path: Path, width: int = 1200, **options: Any) -> tuple[Any, list[str]]:
    """A page of this width at a file, and its complaints."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    complaints = complaints_of(page)
    page.goto(path.as_uri())
    return page, complaints
