"""A page in a browser, and what is to be seen of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Opened:
    """A page in a browser, and what it did."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(browser: Any, html: Path, **context: Any) -> Opened:
    out = Opened(browser.new_context(**context).new_page())
    out.page.on("console", lambda message: out.said.append(message.text))
    out.page.on("pageerror", lambda error: out.said.append(str(error)))
    out.page.on("request", lambda request: out.asked.append(request.url))
    out.page.goto(html.as_uri())
    out.page.wait_for_selector("html[data-ready]", timeout=60_000)
    return out


def drawn(page: Any, chart: str) -> list[str]:
    """Names of the methods whose curves are to be seen in a chart."""
    names: list[str] = page.evaluate(
        """(title) => [...document.querySelectorAll('#s0 .chart')].find((c) => c.textContent.includes(title))
        .querySelector('.plot')._fullData.filter((t) => t.visible === true && t.mode !== 'none').map((t) => t.name)""",
        chart,
    )
    return names
