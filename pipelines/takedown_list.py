"""What a person asks to be taken down: ids and addresses, from the command line or a text file, one a line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from infra.picture_addresses import is_address
from infra.stores import open_store
from pipelines.web.secrets_in_urls import redact

ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
MOST_ERRORS = 5


def asked(given: Iterable[str], list_address: str) -> frozenset[str]:
    """Ids in lower case, and addresses without their secrets. Raises ValueError that names what is neither."""
    found, wrong = set(), []
    for place, text in [*((f"take_down {text!r}", text) for text in given), *_lines(list_address)]:
        one = _normal(text.strip())
        found |= {one}
        wrong += [] if one else [place]
    if wrong:
        more = f" and {len(wrong) - MOST_ERRORS} more" if len(wrong) > MOST_ERRORS else ""
        raise ValueError(
            f"{', '.join(wrong[:MOST_ERRORS])}{more}: neither an id (64 hex digits, the sha256 of a picture's bytes, or the 32 of its "
            "source) nor an address (https://…, s3://…, /…); nothing was taken down"
        )
    return frozenset(found)


def _normal(text: str) -> str:
    """Empty for what is neither an id nor an address."""
    if is_address(text):
        return redact(text)
    return text.lower() if ID.fullmatch(text.lower()) else ""


def _lines(address: str) -> list[tuple[str, str]]:
    """(where it stands, text) of the lines of a file, without empty ones and comments (`#`)."""
    if not address:
        return []
    folder, _, name = address.rpartition("/")
    try:
        text = open_store(folder or ("/" if address.startswith("/") else ".")).read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{address} is not UTF-8 ({error}): save it again as UTF-8, one id or address a line") from error
    lines = [(f"{address} line {n} ({line[:80]!r})", line) for n, line in enumerate(text.splitlines(), 1)]
    return [(place, line) for place, line in lines if line.strip() and not line.lstrip().startswith("#")]
