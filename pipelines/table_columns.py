"""Which column of a table is what, and what is taken from it: by the usual names, or as it was said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

TEXTS = ("url", "caption", "licence", "licence_url", "attribution", "source_url")
NUMBERS = ("width", "height")
USUAL = {  # our column -> what others call it, compared without regard to case; the first that is there is taken
    "url": ("url", "image_url", "photo_image_url", "img_url", "content_url"),
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"),
    "caption": ("caption", "text", "txt", "prompt", "alt_text"),
    "licence": ("licence", "license", "license_name", "licensename", "license_type"),
    "licence_url": ("licence_url", "license_url", "licenseurl"),
    "attribution": ("attribution", "author", "creator", "credit", "photographer", "photographer_username", "unickname"),
    "source_url": (),
    "width": ("width", "photo_width", "original_width"),
    "height": ("height", "photo_height", "original_height"),
}
RECORD = ("key", "status", "error_message")  # columns by which img2dataset's own tables are known
NO_COLUMN = "none"


class UnusableTable(ValueError):
    """A table that is broken, or has not the columns that are needed. `code` fits a ledger."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def short(error: Exception) -> str:
    """An error in a line that fits into another's."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table is what; empty: the usual names (USUAL); `none`: no column. `a.b` is the field b of the struct a."""

    url: str = ""
    image: str = ""  # Parquet with pictures in it
    caption: str = ""
    licence: str = ""
    licence_url: str = ""
    attribution: str = ""
    source_url: str = ""  # the page of a picture, where it is not the URL itself
    width: str = ""
    height: str = ""


def image_column(schema: pa.Schema, asked: str, key: str) -> str:
    """The column with encoded pictures, or ''. Raises UnusableTable if the one that was asked for is missing or holds none."""
    if asked == NO_COLUMN:
        return ""
    if asked:
        name = _find(names_of(schema), asked, "image", key)
        if not _holds_bytes(type_of(schema, name)):
            raise UnusableTable("unknown_schema", f"{key}: column {name!r} is {type_of(schema, name)}, expected binary or a struct with "
                                                  "binary `bytes`: name the column of the pictures with --set columns.image=…")
        return name
    lower = {name.lower(): name for name in reversed(schema.names) if schema.names.count(name) == 1}
    found = [lower[name] for name in USUAL["image"] if name in lower and _holds_bytes(schema.field(lower[name]).type)]
    return found[0] if found else ""


def map_columns(names: Sequence[str], columns: Columns, key: str, needs_url: bool = True) -> dict[str, str]:
    """Our column -> its name in a table of these `names`. Raises UnusableTable."""
    mapping: dict[str, str] = {}
    lower = {name.lower(): name for name in reversed(names)}
    for ours, asked in asdict(columns).items():
        if ours == "image" or asked == NO_COLUMN:
            continue
        usual = next((lower[name] for name in USUAL[ours] if name in lower), "")
        found = _find(names, asked or usual, ours, key) if asked or usual else ""
        if found:
            mapping[ours] = found
    if needs_url and "url" not in mapping:
        near = difflib.get_close_matches("url", [name.lower() for name in names], n=1, cutoff=0.4)
        hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
        raise UnusableTable("unknown_schema", f"{key} has the columns {', '.join(map(repr, names)) or 'none'}, and none is known to hold "
                                              f"addresses or pictures{hint}: name it with --set columns.url=… (or columns.image=…)")
    return mapping


def _find(names: Sequence[str], asked: str, ours: str, key: str) -> str:
    if names.count(asked) > 1:
        raise UnusableTable("unknown_schema", f"{key} has several columns {asked!r}: rename all but one, or name another one with "
                                              f"--set columns.{ours}=…")
    if asked in names:
        return asked
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(asked.lower(), lower, n=1)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"it has {', '.join(map(repr, names))}"
    raise UnusableTable("unknown_schema", f"{key} has no column {asked!r} (columns.{ours}): {hint}")


def names_of(schema: pa.Schema) -> list[str]:
    """Of all columns, and of the fields of structs as `struct.field`."""
    structs = [field for field in schema if pa.types.is_struct(field.type)]
    return [*schema.names, *(f"{one.name}.{inner}" for one in structs for inner in names_of(pa.schema(one.type.fields)))]


def type_of(schema: pa.Schema, name: str) -> pa.DataType:
    """Of a column, or of a field of a struct."""
    if name in schema.names:
        return schema.field(name).type
    outer, inner = next((one, name.removeprefix(f"{one}.")) for one in schema.names if name.startswith(f"{one}."))
    return type_of(pa.schema(schema.field(outer).type.fields), inner)


def pick(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or a field of a struct."""
    if name in batch.schema.names:
        return batch.column(name)
    outer, inner = next((one, name.removeprefix(f"{one}.")) for one in batch.schema.names if name.startswith(f"{one}."))
    found = batch.column(outer)
    return pick(pa.RecordBatch.from_arrays(found.flatten(), names=[field.name for field in found.type.fields]), inner)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold addresses."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind))


def as_text(column: pa.ChunkedArray, name: str, ours: str, key: str) -> pa.ChunkedArray:
    """As text, with null where there is nothing, and U+FFFD for what is no UTF-8."""
    kind = column.type
    if pa.types.is_nested(kind) or _holds_bytes(kind):
        raise UnusableTable("unknown_schema", f"{key}: column {name!r} is {kind}, expected text or numbers: name another one with --set "
                                              f"columns.{ours}=…, or leave it out with --set columns.{ours}={NO_COLUMN}")
    text = pc.cast(column, pa.string())
    try:
        text.validate(full=True)  # Parquet does not see to it
    except pa.ArrowInvalid:
        data = pc.cast(text, pa.binary()).to_pylist()
        text = pa.chunked_array([pa.array([one if one is None else one.decode("utf-8", "replace") for one in data], pa.string())])
    return pc.if_else(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0), pa.scalar(None, pa.string()), text)


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As whole numbers, with null for what is none, and for 0 and less, with which lists say that they do not know."""
    nothing = pa.scalar(None, pa.int64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    try:
        numbers = pc.cast(column, pa.int64(), safe=False)
    except pa.ArrowException:
        values = (str(value).strip() for value in column.to_pylist())
        numbers = pa.chunked_array([pa.array([int(float(v)) if re.fullmatch(r"\d{1,9}(\.\d*)?", v) else None for v in values], pa.int64())])
    return pc.if_else(pc.greater(numbers, 0), numbers, nothing)
