"""A browser for the playground, and pages of two servers: one model, and two whose rankings differ."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt.server.keys import ApiKeys
from tests.server.support import serving
from tests.support import POINTS, calibrate, tiny_artifact

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Each word is worth something else: "four" little, and "nan" is a number.
OTHER_POINTS = np.where(np.isnan(POINTS), 0, np.array([0, 0, 0, 0, 0, 1, 3, 2, 0.5, 0], np.float32))


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def _only_page(browser: Any) -> Any:
    return browser.new_page()


@pytest.fixture
def console() -> list[str]:
    """What the browser's console said. It has to be empty at the end: no script failed, and the policy was kept."""
    return []


@pytest.fixture
def open_page(browser: Any, _only_page: Any, console: list[str]) -> Iterator[Callable[..., Any]]:
    """Open an address, in the page that most tests share, or with options in one of its own."""
    closing = contextlib.ExitStack()

    def note(message: str) -> None:
        if "Failed to load" not in message:  # Chromium notes each status of an error, and addresses without an answer
            console.append(message)

    def open_page(address: str, **options: Any) -> Any:
        page = closing.enter_context(contextlib.closing(browser.new_page(**options))) if options else _only_page
        listeners = {"console": lambda said: note(said.text), "pageerror": lambda error: note(str(error))}
        for event, listener in listeners.items():
            page.on(event, listener)
            closing.callback(page.remove_listener, event, listener)
        page.goto("about:blank")  # or another fragment would not load the page again
        page.goto(address)
        return page

    with closing:
        yield open_page
        _only_page.unroute_all()
    assert console == []


@pytest.fixture
def page(open_page: Callable[..., Any], address: str) -> Any:
    """The playground of one model, with a query."""
    page = open_page(address)
    page.wait_for_selector("#go:enabled")
    page.fill("#query", "one")
    return page


@pytest.fixture(scope="package")
def modules(browser: Any, address: str) -> Any:
    """A page from which the playground's modules can be called, without the playground."""
    page = browser.new_page()
    page.goto(f"{address}/playground/measures.js")
    return page


@pytest.fixture(scope="package")
def two_models(tmp_path_factory: pytest.TempPathFactory, _session_cache: None) -> Iterator[str]:
    """The address of a server of two models. The first is calibrated, and fails for the word "nan"."""
    folder = tmp_path_factory.mktemp("two")
    calibrate(tiny_artifact(folder / "exact"))
    tiny_artifact(folder / "quick", points={"fp32": OTHER_POINTS})
    with serving(f"exact={folder / 'exact'}", f"quick={folder / 'quick'}") as address:
        yield address


@pytest.fixture
def compared(open_page: Callable[..., Any], two_models: str) -> Any:
    """The playground of two models beside each other, with a query."""
    page = open_page(two_models)
    page.check("#compare")
    page.fill("#query", "one")
    return page


@pytest.fixture(scope="package")
def keyed(tiny_folder: Path, _session_cache: None) -> Iterator[str]:
    """The address of a server of one model that asks for the key "our-key"."""
    with serving(tiny_folder, keys=ApiKeys(["our-key"])) as address:
        yield address


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file and return its path."""

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write
