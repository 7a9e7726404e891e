"""Content to one HTML file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from pipelines.page import sections
from pipelines.page.content import Page
from pipelines.page.markup import Html, tag

HERE = Path(__file__).parent
MOST_BYTES = 8_000_000  # choice: a page that travels by mail


def build(page: Page) -> str:
    """The page as HTML. Raises ValueError if it grew beyond what travels well."""
    style, script = (Html((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Open SUPIR: {page.title}"),
        tag("style", style),
    )
    main = tag("main", *sections.all_sections(page))
    body = tag("body", sections.header(page), main, sections.footer(page), tag("script", script))
    text = "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"
    size = len(text.encode())
    if size > MOST_BYTES:
        raise ValueError(f"the page has {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} are wanted: show fewer pictures (--set most=…)")
    return text
