"""What only the whole corpus can tell: thresholds from percentiles, and who wins in a group of duplicates. From the scores tables alone.

No pixel is moved, and memory is bounded: about 100 bytes a row, 2 GB for 20 million. Every answer is a function of the rows: not of
their order, of shards or of workers. Rows that were taken down, or that fail a threshold themselves, take no part: a group must not
lose its good copy to one that is rejected anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset import Dataset, Snapshot
from pipelines.stages.selection import DUPLICATE_EXACT, DUPLICATE_NEAR, SelectionRule, Threshold

HASH_BITS = 64
BLOCK_ROWS = 1024  # choice: 1024 x n comparisons at a time stay in the cache
RANKED_BY = "sharpness"  # of two copies of one size the sharper wins
COLUMNS = ["image_id", "source_id", "width", "height", "short_side", "phash"]
SIGNIFICANT_DIGITS = 3  # choice: a few more photographs do not move a threshold, so what was selected stays selected


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The scores of a corpus, in columns; row i of all of them is one image."""

    image_id: NDArray[Any]  # S32, the digest's bytes
    source_id: NDArray[Any]  # S16
    shard: NDArray[Any]  # index into `shards`
    pixels: NDArray[Any]
    short_side: NDArray[Any]
    measures: dict[str, NDArray[Any]]  # RANKED_BY and what the rule judges by; NaN where it was not measured
    phash: NDArray[Any]  # uint64
    shards: list[str]

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """Resolved thresholds, and for each shard its losers: source_id -> [reason, the winner's id]."""

    limits: dict[str, float]  # of a measure
    taken_down: dict[str, list[str]] = field(default_factory=dict)
    duplicates: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def params(self, shard: str) -> dict[str, Any]:
        """What the selection of one shard depends on."""
        return {"limits": self.limits, "taken_down": self.taken_down.get(shard, []), "duplicates": self.duplicates.get(shard, {})}


def corpus_facts(dataset: Dataset, scores: Snapshot, rule: SelectionRule) -> CorpusFacts:
    """Read the scores and decide."""
    return facts_of(load_rows(dataset, scores, rule), rule, dataset.takedowns())


def facts_of(rows: Rows, rule: SelectionRule, takedowns: frozenset[str] = frozenset()) -> CorpusFacts:
    """The facts of these rows under a rule."""
    gone = _among(rows, takedowns)
    large = ~gone & (rows.short_side >= rule.min_short_side)
    limits = {one.measure: threshold(rows.measures[one.measure][large], one.threshold) for one in rule.limits()}
    failing = [one.fails(rows.measures[one.measure], limits[one.measure]) for one in rule.limits()]
    contenders = np.flatnonzero(large & ~np.any(failing, axis=0) if failing else large)
    duplicates: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for row, reason, winner in _losers(rows, contenders, rule.near_radius):
        duplicates[rows.shards[rows.shard[row]]][_hex(rows.source_id[row], 16)] = [reason, winner]
    taken_down: dict[str, list[str]] = defaultdict(list)
    for shard, source in zip(rows.shard[gone].tolist(), rows.source_id[gone].tolist()):
        taken_down[rows.shards[shard]].append(_hex(source, 16))
    return CorpusFacts(limits=limits, duplicates=dict(duplicates),
                       taken_down={shard: sorted(ids) for shard, ids in taken_down.items()})


def threshold(values: NDArray[Any], wanted: Threshold) -> float:
    """The percentile of the values, held between two absolute bounds. NaN does not count."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return wanted.at_least
    found = float(f"{np.percentile(values, wanted.percentile):.{SIGNIFICANT_DIGITS}g}")
    return min(max(found, wanted.at_least), wanted.at_most)


# duplicates

def _losers(rows: Rows, contenders: NDArray[Any], near_radius: int) -> Iterator[tuple[int, str, str]]:
    """(row, reason, id of who won) for every contender that is a copy of a better one.

    Better: more pixels, then sharper, then the smaller image_id, then the smaller source_id. From the best to the worst, a row is kept
    unless a kept one is its copy: so a chain of small changes does not make strangers of one group.
    """
    order = contenders[rank(rows, contenders)]
    _, first = np.unique(rows.image_id[order], return_index=True)
    survivor_of = dict(zip(rows.image_id[order[first]].tolist(), order[first].tolist()))
    survives = np.zeros(len(order), dtype=bool)
    survives[first] = True
    for row in order[~survives].tolist():
        yield row, DUPLICATE_EXACT, _hex(rows.source_id[survivor_of[rows.image_id[row]]], 16)
    order = order[survives]
    for loser, winner in near_losers(rows.phash[order], near_radius):
        yield int(order[loser]), DUPLICATE_NEAR, _hex(rows.image_id[order[winner]], 32)


def rank(rows: Rows, which: NDArray[Any]) -> NDArray[Any]:
    """Positions in `which`, the best row first."""
    keys = (rows.source_id[which], rows.image_id[which], -rows.measures[RANKED_BY][which], -rows.pixels[which])
    return np.lexsort(keys)  # the last key decides first


def near_losers(hashes: NDArray[Any], radius: int) -> Iterator[tuple[int, int]]:
    """(loser, winner) among hashes that are sorted from the best row to the worst."""
    unique, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    close: dict[int, list[int]] = defaultdict(list)
    for a, b in near_pairs(unique, radius):
        close[a].append(b)
        close[b].append(a)
    winner_of: dict[int, int] = {}  # loser's unique hash -> winner's; equal hashes share their fate with the best of them
    for one in sorted(close, key=lambda u: first[u]):
        better = [first[other] for other in close[one] if first[other] < first[one] and other not in winner_of]
        if better:
            winner_of[one] = int(min(better))
    for row, one in enumerate(group.tolist()):
        if one in winner_of:
            yield row, winner_of[one]
        elif row != first[one]:
            yield row, int(first[one])


def near_pairs(unique: NDArray[Any], radius: int) -> list[tuple[int, int]]:
    """Index pairs (a < b) of hashes (uint64, distinct) that differ in at most `radius` bits.

    Of radius + 1 bands of bits two such hashes agree in one at least, so only hashes that share a band are compared.
    """
    if not 0 <= radius < HASH_BITS:
        raise ValueError(f"near_radius is {radius}, expected 0 to {HASH_BITS - 1} bits")
    found: set[tuple[int, int]] = set()
    edges = np.linspace(0, HASH_BITS, radius + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()) if radius else ():
        band = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order][:1] + np.uint64(1)))
        for members in np.split(order, starts[1:]):
            found.update(_pairs_within(unique, np.sort(members), radius))
    return sorted(found)


def _pairs_within(unique: NDArray[Any], members: NDArray[Any], radius: int) -> Iterator[tuple[int, int]]:
    for low in range(0, len(members) if len(members) > 1 else 0, BLOCK_ROWS):
        block, rest = members[low:low + BLOCK_ROWS], members[low:]
        close = np.bitwise_count(unique[block][:, None] ^ unique[rest][None, :]) <= radius
        for a, b in np.argwhere(np.triu(close, k=1)).tolist():
            yield int(block[a]), int(rest[b])


# reading

def load_rows(dataset: Dataset, scores: Snapshot, rule: SelectionRule) -> Rows:
    """Read the columns that are needed of every shard."""
    measures = sorted({RANKED_BY, *(one.measure for one in rule.limits())})
    columns = [*COLUMNS, *measures]
    tables = [dataset.read(ref, columns) for ref in scores.shards.values()]
    sizes = [table.num_rows for table in tables]
    whole = pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})

    def numbers(name: str) -> NDArray[Any]:
        return np.asarray(whole[name].to_numpy())

    return Rows(
        image_id=_digests(whole["image_id"], 32), source_id=_digests(whole["source_id"], 16), shard=np.repeat(np.arange(len(sizes)), sizes),
        pixels=numbers("width").astype(np.int64) * numbers("height").astype(np.int64), short_side=numbers("short_side"),
        measures={name: numbers(name).astype(np.float64) for name in measures},
        phash=_digests(whole["phash"], 8).view(">u8").astype(np.uint64),
        shards=list(scores.shards))


def _digests(column: pa.ChunkedArray, size_bytes: int) -> NDArray[Any]:
    """Hex text as fixed-width bytes: a third of the memory, and sorted as the text would be."""
    raw = b"".join(bytes.fromhex(text) for chunk in column.chunks for text in chunk.to_pylist())
    return np.frombuffer(raw, dtype=f"V{size_bytes}").view(f"S{size_bytes}")


def _among(rows: Rows, ids: frozenset[str]) -> NDArray[Any]:
    images = np.array([bytes.fromhex(one) for one in ids if len(one) == 64], dtype="S32")
    sources = np.array([bytes.fromhex(one) for one in ids if len(one) == 32], dtype="S16")
    return np.isin(rows.image_id, images) | np.isin(rows.source_id, sources)


def _hex(digest: Any, size_bytes: int) -> str:
    return bytes(digest).ljust(size_bytes, b"\0").hex()  # numpy drops trailing zero bytes
