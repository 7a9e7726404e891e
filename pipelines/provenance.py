"""What a source says of its pictures: licence, author, origin, caption; and the CSV that says it of a folder."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from pipelines.table_text import delimiter_of
from pipelines.web.secrets_in_urls import redact

SYNONYMS = {  # our column -> what others call it
    "licence": ("licence", "license"),
    "licence_url": ("licence_url", "license_url"),
    "attribution": ("attribution", "credit", "author"),
    "source_url": ("source_url", "url"),
    "caption_source": ("caption_source", "caption", "text"),
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the source says of a picture; empty where it says nothing."""

    licence: str = ""
    licence_url: str = ""
    attribution: str = ""
    source_url: str = ""
    caption_source: str | None = None


def provenance_of(record: dict[str, Any]) -> Provenance:
    """Provenance from a record with our names or the common other ones; what is no text is taken as text, secrets are not taken."""
    found: dict[str, str] = {}
    for name, synonyms in SYNONYMS.items():
        values = (record[synonym] for synonym in synonyms if record.get(synonym) not in (None, ""))
        value = next(values, None)
        if value is not None:
            found[name] = _whole(value) if isinstance(value, str) else json.dumps(value)
    if "source_url" in found:
        found["source_url"] = redact(found["source_url"])
    return Provenance(**found)


def _whole(text: str) -> str:
    """U+FFFD in place of half a character: JSON may tell one (`\\ud83d`, where a caption was cut), a table cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def parse_csv(data: bytes, name: str) -> dict[str, Provenance]:
    """File -> provenance. Raises ValueError unless there is a column `file` and the text is UTF-8."""
    try:
        text = data.decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text), delimiter=delimiter_of(text.split("\n", 1)[0]))
        table = [{key: value for key, value in row.items() if isinstance(key, str)} for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name} is not a CSV file in UTF-8 ({error}): save it again as UTF-8") from error
    if table and "file" not in table[0]:
        raise ValueError(f"{name} has the columns {', '.join(table[0])}, expected one named 'file' with paths relative to the source")
    return {str(row["file"]): provenance_of(row) for row in table}
