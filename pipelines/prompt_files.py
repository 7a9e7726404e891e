"""Prompts that a person gave: a `.txt` file beside a picture says what is in it; `--prompt` speaks for the others.

They are read anew by every run and travel as parameters of their shards, so that another text redoes its own shard alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from infra.dataset import Dataset, Snapshot
from infra.storage import NotFound, Store
from infra.stores import open_store
from pipelines.sources import to_key
from pipelines.tars import METADATA_MAX_BYTES

SUFFIX = ".txt"
PARAM = "prompts"


def by_shard(source: Dataset, images: Snapshot, prompt: str | None, *, files: bool) -> Callable[[str], dict[str, Any]]:
    """The parameters of a shard: {"prompts": {source_id: text}}; pictures that no one described are left out."""
    beside = _beside(source) if files and source.has("inputs") else {}

    def params(shard: str) -> dict[str, Any]:
        ids = source.read(images.shards[shard], ["source_id"]).column("source_id").to_pylist()
        texts = {one: beside.get(one) or prompt for one in ids}
        given = {one: text for one, text in texts.items() if text}
        return {PARAM: given} if given else {}

    return params


def _beside(source: Dataset) -> dict[str, str]:
    """source_id -> text of the file beside the picture; pictures in tars have none."""
    stores: dict[str, Store] = {}
    found = {}
    for ref in source.snapshot("inputs").shards.values():
        for row in source.read(ref, ["source_id", "address", "position", "offset"]).to_pylist():
            if row["offset"] is None:
                store = stores.setdefault(row["address"], open_store(row["address"]))
                if text := _read(store, str(PurePosixPath(to_key(row["position"])).with_suffix(SUFFIX))):
                    found[row["source_id"]] = text
    return found


def _read(store: Store, key: str) -> str:
    try:
        if store.size(key) > METADATA_MAX_BYTES:
            return ""
        return " ".join(store.read(key).decode("utf-8-sig", "replace").split())
    except NotFound:
        return ""
