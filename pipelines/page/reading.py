"""Rows of datasets, and their names as a person says them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from infra.dataset import Dataset, Snapshot

Row = dict[str, Any]


class AsItWas(Dataset):
    """A dataset whose current snapshots are read once: a page shows one state, also while jobs publish others."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._current: dict[str, Snapshot] = {}

    def snapshot(self, table: str, version: str | None = None) -> Snapshot:
        """As it was when it was first asked for."""
        if version is None and table not in self._current:
            self._current[table] = super().snapshot(table)
        return super().snapshot(table, version) if version else self._current[table]


def rows(dataset: Dataset, table: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a table's current snapshot, shard by shard."""
    snapshot: Snapshot = dataset.snapshot(table)
    for ref in snapshot.shards.values():
        yield from dataset.read(ref, columns).to_pylist()


def first(found: Iterator[Row], most: int) -> Iterator[Row]:
    """At most so many."""
    for _, row in zip(range(most), found, strict=False):
        yield row


def title_of(position: str) -> str:
    """A file's path as words: `a/dandelions_at_sunset.jpg` -> dandelions at sunset."""
    return PurePosixPath(position.rsplit("!", 1)[-1]).stem.replace("_", " ").replace("-", " ")


def shorten(value: str, most: int) -> str:
    """A message that fits a card."""
    return value if len(value) <= most else value[: most - 1].rstrip() + "…"
