"""What tests of the playground do on the page."""

from typing import Any


def rank(page: Any, *documents: str) -> None:
    """Rank documents, and wait for the answer."""
    if documents:
        page.fill("#documents", "\n".join(documents))
    page.click("#go")
    page.wait_for_selector("#go:enabled")  # a click disables it until the answer is shown


def side(page: Any, name: str) -> Any:
    """Return the ranking of a side."""
    return page.locator(f"[aria-labelledby=ranking-{name}]")


def give_key(page: Any, key: str) -> None:
    """Give the server's key, and wait for the models that it shows then."""
    page.fill("#key", key)
    page.press("#key", "Tab")
    page.wait_for_selector("#go:enabled")


def program(page: Any, language: str) -> str:
    """Return the request of the page as a program."""
    page.evaluate("document.getElementById('program').open = true")
    page.select_option("#language", language)
    page.wait_for_selector("#code:not(:empty)")
    return str(page.locator("#code").text_content())


def texts(side: Any) -> list[str]:
    """Return the documents of a ranking, the best first."""
    return list(side.locator(".text").all_inner_texts())


def said(page: Any, name: str = "status") -> str:
    """Return what the page says at one of its places."""
    return str(page.locator(f"#{name}").inner_text())


def call(page: Any, module: str, function: str, *arguments: Any) -> Any:
    """Return what a function of one of the page's modules returns."""
    work = "async ([module, name, given]) => (await import(`/playground/${module}`))[name](...given)"
    return page.evaluate(work, [module, function, list(arguments)])
