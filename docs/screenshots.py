"""Pictures of a report in headless Chromium, wide and narrow, light and dark.

    python docs/screenshots.py runs/r18/report.html [--out docs/images]

Needs playwright (`pip install 'cswap[dev]'`) and Debian's `chromium`.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

SHOTS = (
    ("wide-light", 1440, 900, "light"),
    ("wide-dark", 1440, 900, "dark"),
    ("phone-light", 390, 844, "light"),
    ("phone-dark", 390, 844, "dark"),
)


def picture(page: Any, file: Path, whole: bool = False) -> None:
    """The page as WebP."""
    png = page.screenshot(full_page=whole)
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "WEBP", quality=80, method=6)


def shoot(report: Path, out: Path) -> None:
    """Top of the page and its map, in each form."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme in SHOTS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(report.resolve().as_uri())
            page.wait_for_selector("html[data-ready]")
            picture(page, out / f"report-{name}.webp")
            canvas = page.locator("#rows canvas").nth(3)
            canvas.scroll_into_view_if_needed()
            canvas.click(position={"x": 20, "y": 5})
            page.locator("#map").evaluate("e => window.scrollTo({top: e.offsetTop - 50, behavior: 'instant'})")
            picture(page, out / f"report-map-{name}.webp")
            page.close()
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    given = parser.parse_args()
    shoot(given.report, given.out)
