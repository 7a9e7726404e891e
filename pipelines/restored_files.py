"""Restored pictures as PNG files beside the table, for people: `<output>/pictures/<name>.png`."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from infra.dataset import Dataset, Snapshot

FOLDER = "pictures"


def write(source: Dataset, output: Dataset, restorations: Snapshot) -> None:
    """Write each restored picture under the name that it came with; files that are there already and equal are left alone."""
    names = file_names(positions_of(source))
    written = 0
    for ref in restorations.shards.values():
        for row in output.read(ref, ["image_id", "bytes"]).to_pylist():
            for name in names.get(row["image_id"], [f"{row['image_id']}.png"]):
                written += _put(output, f"{FOLDER}/{name}", row["bytes"])
    print(f"pictures: {written} written to {output.store.url}/{FOLDER}", flush=True)


def positions_of(source: Dataset) -> dict[str, list[str]]:
    """image_id -> where it stood in its source; the same bytes may have stood in several places."""
    named: dict[str, str] = {}
    if source.has("inputs"):
        for ref in source.snapshot("inputs").shards.values():
            named |= {row["source_id"]: row["position"] for row in source.read(ref, ["source_id", "position"]).to_pylist()}
    found: dict[str, list[str]] = {}
    for ref in source.snapshot("images").shards.values():
        for row in source.read(ref, ["image_id", "source_id"]).to_pylist():
            found.setdefault(row["image_id"], []).append(named.get(row["source_id"], row["image_id"]))
    return found


def file_names(positions: dict[str, list[str]]) -> dict[str, list[str]]:
    """`a/b.jpg` -> `a/b.png`; where that names two pictures (`b.jpg` and `b.webp`), `a/b.jpg.png`."""
    short = Counter(_short(position) for places in positions.values() for position in places)
    return {
        image_id: [_short(position) if short[_short(position)] == 1 else f"{_inside(position)}.png" for position in dict.fromkeys(places)]
        for image_id, places in positions.items()
    }


def _short(position: str) -> str:
    return str(PurePosixPath(_inside(position)).with_suffix(".png"))


def _inside(position: str) -> str:
    """A name that stays in the folder: no root, no way up."""
    parts = [part for part in PurePosixPath(position.lstrip("/")).parts if part not in ("..", "/")]
    return "/".join(parts) or "picture"


def _put(output: Dataset, key: str, data: bytes) -> bool:
    store = output.store
    if store.exists(key):
        if store.size(key) == len(data) and store.read(key) == data:
            return False
        store.delete(key)
    store.put(key, data)
    return True
