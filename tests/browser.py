"""Chromium for the tests of our pages, driven by Playwright; a test that needs it says so where it is missing."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="no browser: install Chromium (apt install chromium) and Playwright (pip install playwright)",
)


@contextmanager
def opened(address: str, **settings: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of Chromium at ``address``, and the errors that it has logged so far: among them every request to another server.

    A file is opened offline, and asks for nothing at all.

    Args:
        settings: of the page: ``viewport``, ``color_scheme``, …
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        served = address.startswith("http")
        page = browser.new_page(offline=not served, **settings)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

        def note(request: Any) -> None:
            if not (request.url.startswith(address) if served else request.url == address):
                errors.append(f"asks for {request.url}")

        page.on("request", note)
        page.goto(address)
        yield page, errors
        browser.close()
