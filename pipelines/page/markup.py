"""HTML and SVG elements that escape whatever they are given, so that no caption can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"img", "input", "br", "hr", "meta", "line", "rect", "path", "circle", "polyline"})


class Html(str):
    """Text that is markup already. Only `tag`, `join` and the page's own files make it."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as text, escaped unless it is markup already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Several pieces, each escaped unless it is markup already."""
    return Html(between.join(text(part) for part in parts))


def tag(element: str, /, *children: object, **attributes: object) -> Html:
    """One element. `class_` and `for_` lose their underscore, other underscores become hyphens; None and False leave an attribute out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None and value is not False)
    written = "".join(f" {key}" if value is True else f' {key}="{text(value)}"' for key, value in pairs)
    if element in VOID:
        return Html(f"<{element}{written}/>")
    return Html(f"<{element}{written}>{join(children)}</{element}>")


def link(url: str, label: object) -> Html:
    """A link if the address is a web address (a `javascript:` one in somebody's metadata is not), else the label alone."""
    if url.startswith(("https://", "http://")):
        return tag("a", label, href=url, rel="noopener nofollow")
    return text(label)


def words(code: str) -> str:
    """A reason's code as words: `too_small` -> too small, `UnidentifiedImageError` -> unidentified image error."""
    spaced = "".join(f" {c.lower()}" if c.isupper() and before.islower() else c for before, c in zip(" " + code, code, strict=False))
    return spaced.replace("_", " ").strip().removesuffix(" error") or code
