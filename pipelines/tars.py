"""What a tar holds: its members by their headers, and what the small ones beside a picture say of it."""

from __future__ import annotations

import json
import os
import tarfile
from typing import Any

from pipelines.provenance import Provenance, provenance_of

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_MAX_BYTES = 1 << 20  # choice: a caption or a record of origin is small; more is not read
TAIL_BYTES = 1 << 20  # choice: of what is behind a tar's last member; tar itself pads to 10 KiB
BROKEN_TAR = ("broken_tar: it was cut or damaged, or its writer did not close it: behind the last member that can be read there is no "
              "end mark, or there is more than that; the members before that were taken; fetch or write it again")
NO_TAR = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError)  # measured: what tarfile raises of mutated tars


def read_headers(file: Any) -> tuple[dict[str, list[tarfile.TarInfo]], bool]:
    """(members by stem, in the order of the tar; whether the tar could be read to its end)."""
    members: dict[str, list[tarfile.TarInfo]] = {}
    behind = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset < behind or member.size < 0:  # Python before 3.11.14 goes round and round
                    return members, False
                behind = member.offset_data
                if member.isreg():
                    folder, _, name = member.name.rpartition("/")
                    members.setdefault(f"{folder}/{name.split('.', 1)[0]}", []).append(member)
            file.seek(tar.offset)  # where tarfile stopped, at an end mark or at what it took for one
            tail = file.read(TAIL_BYTES)
    except NO_TAR:
        return members, False
    return members, bool(tail) and not tail.strip(b"\0")


def tell(file: Any, parts: list[tarfile.TarInfo]) -> Provenance:
    """What the members beside a picture say of it. A record that cannot be read says nothing."""
    record: dict[str, Any] = {}
    for part in parts:
        suffix = os.path.splitext(part.name)[1].lower()
        if suffix in (*CAPTION_SUFFIXES, ".json") and part.size <= METADATA_MAX_BYTES:
            file.seek(part.offset_data)
            text = file.read(part.size).decode("utf-8", "replace")
            record |= {"caption_source": text.strip()} if suffix in CAPTION_SUFFIXES else _json_record(text)
    return provenance_of(record)


def _json_record(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
