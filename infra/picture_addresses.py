"""Where pictures came from, as a takedown names it: a web address, or the place of a file (`s3://…`, `file:///…`, `/…`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

ADDRESS_COLUMNS = ("source_url", "url", "address", "position")
_HOST = re.compile(r"^([a-z][a-z0-9+.-]*://[^/?#]*)", re.IGNORECASE)


def is_address(asked: str) -> bool:
    """Whether it is no id, but where a picture came from."""
    return "://" in asked or asked.startswith("/")


def comparable(address: str) -> str:
    """One text for what is spelt in several ways: http or https, scheme and host in any case, a path with `file://` or without."""
    address = f"file://{address}" if address.startswith("/") else address
    return re.sub("^https://", "http://", _HOST.sub(lambda found: found[1].lower(), address))


def came_from(rows: pa.Table, addresses: Iterable[str]) -> pa.Array:
    """Which rows have one of these addresses. `rows` has any of ADDRESS_COLUMNS; of inputs, `address`/`position` is the file's place."""
    wanted = {comparable(one) for one in addresses}
    lower = pa.array(sorted({one.lower() for one in wanted}), pa.string())
    mask = pa.array([False] * rows.num_rows, pa.bool_())
    for column in _columns(rows):
        likely = pc.utf8_lower(pc.replace_substring_regex(column, "^/", "file:///"))
        likely = pc.fill_null(pc.is_in(pc.replace_substring_regex(likely, "^https://", "http://"), value_set=lower), False)
        if pc.any(likely).as_py():
            exact = [sure and comparable(text.as_py()) in wanted for sure, text in zip(likely.to_pylist(), column)]
            mask = pc.or_(mask, pa.array(exact, pa.bool_()))
    return mask


def addresses_of(rows: pa.Table) -> set[str]:
    """All addresses of these rows, in the form that is compared."""
    return {comparable(text) for column in _columns(rows) for text in column.to_pylist() if text}


def _columns(rows: pa.Table) -> Iterator[pa.Array]:
    names = set(rows.column_names)
    yield from (rows[name].combine_chunks() for name in ("source_url", "url") if name in names)
    if {"address", "position"} <= names:
        yield pc.binary_join_element_wise(rows["address"].combine_chunks(), rows["position"].combine_chunks(), "/")
