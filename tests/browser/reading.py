"""A reader of pages: chromium driven by Playwright, with everything that a page complains about or asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install -r envs/browser.txt"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs axe: pip install -r envs/browser.txt"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs chromium: apt-get install chromium", allow_module_level=True)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Reader:
    """A page with everything that it complains about or asks for."""

    def __init__(self, browser: Any, file: Path, size: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.home = file.as_uri()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on(
            "console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text)
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda r: self.asked.append(r.url))

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, address: str = "#/") -> Any:
        """Go to an address and wait until its page and its charts are drawn."""
        self.page.goto(self.home + address)
        return self.settle()

    def settle(self) -> Any:
        self.page.wait_for_selector("main:not([aria-busy]) h1")
        self.page.wait_for_selector(".chart:not([data-drawn])", state="detached")
        return self.page

    def check(self) -> None:
        """Nothing was complained about, and nothing but files of the atlas was asked for."""
        folder = self.home.rpartition("/")[0]
        assert self.complaints == []
        elsewhere = [url for url in self.asked if not url.startswith((folder, "data:"))]
        assert elsewhere == []

    def violations(self) -> list[Any]:
        """What axe-core finds serious or critical: rule, elements, what to do."""
        found = axe.Axe().run(self.page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        return [
            (v["id"], [n["html"][:120] for n in v["nodes"][:3]], v["nodes"][0]["failureSummary"])
            for v in serious
        ]

    def screenshot(self, name: str) -> None:
        """Keep a picture of the whole page, if pictures are wanted."""
        if SCREENSHOTS:
            folder = Path(SCREENSHOTS)
            folder.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(folder / f"{name}.png"), full_page=True)
