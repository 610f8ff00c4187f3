"""The picture of the playground in docs/server.md: two precisions of the tiny reranker, as Chromium shows them.

    rankrt serve exact=./tiny@fp32 quick=./tiny@int8
    python -m scripts.pictures http://localhost:8080

Needs playwright and Chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "playground.png"
_QUERY = "how do pandas eat?"
_DOCUMENTS = """Pandas eat bamboo for most of the day, sitting up and holding the stalks with a sixth finger.
The giant panda is a bear of central China.
Red pandas sleep in trees, and are not bears.
Paris is the capital of France."""


def main() -> None:
    (address,) = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light")
        page.goto(address)
        page.fill("#query", _QUERY)
        page.fill("#documents", _DOCUMENTS)
        page.wait_for_selector("#settings:enabled")
        page.check("#compare")
        page.select_option("#model-B", "quick")
        page.click("#go")
        page.wait_for_selector("#rankings li")
        page.wait_for_selector("#go:enabled")
        PICTURE.parent.mkdir(exist_ok=True)
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
