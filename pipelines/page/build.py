"""Content to one HTML file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from pipelines.page import sections
from pipelines.page.content import Page
from pipelines.page.dataset import sections as dataset_sections
from pipelines.page.dataset.content import DatasetPage
from pipelines.page.markup import Html, tag

HERE = Path(__file__).parent
MOST_BYTES = 8_000_000  # choice: a page that travels by mail


def build(page: Page | DatasetPage) -> str:
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
    text = "<!doctype html>\n" + tag("html", head, tag("body", *_parts(page), tag("script", script)), lang="en") + "\n"
    size = len(text.encode())
    if size > MOST_BYTES:
        raise ValueError(f"the page has {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} are wanted: show fewer pictures (--set most=…)")
    return text


def _parts(page: Page | DatasetPage) -> list[Html]:
    if isinstance(page, DatasetPage):
        return [dataset_sections.header(page), tag("main", *dataset_sections.all_sections(page)), dataset_sections.footer(page)]
    return [sections.header(page), tag("main", *sections.all_sections(page)), sections.footer(page)]
