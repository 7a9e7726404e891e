"""Restored pictures as PNG files beside the table, for people: `<output>/pictures/<name>.png`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath

from infra.dataset import Dataset, Snapshot
from infra.local_store import LocalStore
from infra.storage import Store, unique_name

FOLDER = "pictures"


def write(source: Dataset, output: Dataset, restorations: Snapshot) -> None:
    """Write each restored picture under the name that it came with; files that are there already and equal are left alone."""
    names = file_names(positions_of(source))
    written = 0
    for ref in restorations.shards.values():
        for row in output.read(ref, ["source_id", "bytes"]).to_pylist():
            for name in names.get(row["source_id"], [f"{row['source_id']}.png"]):
                written += put_if_changed(output.store, f"{FOLDER}/{name}", row["bytes"])
    print(f"pictures: {written} written to {output.store.url}/{FOLDER}", flush=True)


def positions_of(source: Dataset) -> dict[str, list[str]]:
    """source_id -> where it stood in its source."""
    if not source.has("inputs"):
        return {}
    return {
        row["source_id"]: [row["position"]]
        for ref in source.snapshot("inputs").shards.values()
        for row in source.read(ref, ["source_id", "position"]).to_pylist()
    }


def file_names(positions: dict[str, list[str]]) -> dict[str, list[str]]:
    """`a/b.jpg` -> `a/b.png`; where that names two pictures (`b.jpg` and `b.webp`), `a/b.jpg.png`."""
    short = Counter(_short(position) for places in positions.values() for position in places)
    return {
        one: [_short(position) if short[_short(position)] == 1 else f"{_inside(position)}.png" for position in dict.fromkeys(places)]
        for one, places in positions.items()
    }


def put_if_changed(store: Store, key: str, data: bytes) -> bool:
    """Write a file for people, at once whole; False if it is there already. Whoever looks sees the old one or the new one."""
    if store.exists(key) and store.size(key) == len(data) and store.read(key) == data:
        return False
    if isinstance(store, LocalStore):
        attempt = str(PurePosixPath(key).with_name(unique_name("." + PurePosixPath(key).name, ".part")))
        store.put(attempt, data)
        os.replace(Path(store.url, attempt), Path(store.url, key))
    else:
        store.put(key, data)
    return True


def _short(position: str) -> str:
    return str(PurePosixPath(_inside(position)).with_suffix(".png"))


def _inside(position: str) -> str:
    """A name that stays in the folder: no root, no way up."""
    parts = [part for part in PurePosixPath(position.lstrip("/")).parts if part not in ("..", "/")]
    return "/".join(parts) or "picture"
