"""What only the whole corpus can tell: thresholds from percentiles, who wins in a group of duplicates, and what shows a test picture.
From the scores tables alone.

No pixel is moved, and memory is bounded: 600 bytes a row and 8 for each measure of the rule, and while duplicates are sought about as
much again (docs/results/duplicates.md); with test sets 450 more in a temporary file and, for a while, 210 in memory. Every answer is a
function of the rows: not of their order, of shards or of workers. Rows that were taken down, that show a test picture, or that fail a
threshold themselves, take no part: a group must not lose its good copy to one that is rejected anyway.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset import Dataset, Snapshot
from pipelines.contamination import TestPictures, contaminated
from pipelines.duplicates import near_losers
from pipelines.semantic import semantic_losers
from pipelines.stages.hashes import CROPS, LEAST_QUALITY, PARTS, WORDS, to_words, turned
from pipelines.stages.selection import DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_SEMANTIC, SelectionRule, Threshold

EXCLUDE_RADIUS = 40  # choice: see recipes/curate.py, which sets it
RANKED_BY = "bits_per_pixel"  # measured: saved again at 75 to 95 a copy is sharper, by its artefacts, in 68 to 87 of 100
COLUMNS = ["image_id", "source_id", "width", "height", "short_side", "phash", "phash_quality", "phash_crops"]
IMAGE_ID, SOURCE_ID = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
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
    words_NF4: NDArray[Any]  # hashes: of the picture, of it turned over the diagonal, of hashes.CROPS
    is_clear: NDArray[Any]  # whether the hash means anything
    shows_NK4: NDArray[Any] | None = None  # hashes of the picture and of hashes.parts, in a file; None: there are no test sets
    vectors_ND: NDArray[Any] | None = None  # embeddings, in a file; zero where a row has none. None: the rule does not look at them
    shards: list[str]

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """Resolved thresholds, and for each shard its losers: source_id -> [reason, the winner's id]."""

    limits: dict[str, float]  # of a measure
    taken_down: dict[str, list[str]] = field(default_factory=dict)
    duplicates: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    contaminated: dict[str, dict[str, str]] = field(default_factory=dict)  # of each shard: source_id -> the test picture

    def params(self, shard: str) -> dict[str, Any]:
        """What the selection of one shard depends on."""
        return {"limits": self.limits, "taken_down": self.taken_down.get(shard, []), "duplicates": self.duplicates.get(shard, {}),
                "contaminated": self.contaminated.get(shard, {})}


def corpus_facts(dataset: Dataset, scores: Snapshot, rule: SelectionRule, tests: TestPictures | None = None,
                 exclude_radius: int = EXCLUDE_RADIUS) -> CorpusFacts:
    """Read the scores and decide."""
    rows = load_rows(dataset, scores, rule, parts=tests is not None and bool(tests.names))
    return facts_of(rows, rule, dataset.takedowns(), tests, exclude_radius)


def facts_of(rows: Rows, rule: SelectionRule, takedowns: frozenset[str] = frozenset(), tests: TestPictures | None = None,
             exclude_radius: int = EXCLUDE_RADIUS) -> CorpusFacts:
    """The facts of these rows under a rule."""
    gone = _among(rows, takedowns)
    shows_NK4 = rows.words_NF4[:, :1] if rows.shows_NK4 is None else rows.shows_NK4
    shown = contaminated(rows.image_id, shows_NK4, rows.is_clear, tests, exclude_radius) if tests else {}
    candidates = ~gone & (rows.short_side >= rule.min_short_side)
    candidates[list(shown)] = False
    limits = {one.measure: threshold(rows.measures[one.measure][candidates], one.threshold) for one in rule.limits()}
    failing = [one.fails(rows.measures[one.measure], limits[one.measure]) for one in rule.limits()]
    contenders = np.flatnonzero(candidates & ~np.any(failing, axis=0) if failing else candidates)
    duplicates: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for row, reason, winner in _losers(rows, contenders, rule):
        duplicates[rows.shards[rows.shard[row]]][_hex(rows.source_id[row], 16)] = [reason, winner]
    taken_down: dict[str, list[str]] = defaultdict(list)
    for shard, source in zip(rows.shard[gone].tolist(), rows.source_id[gone].tolist()):
        taken_down[rows.shards[shard]].append(_hex(source, 16))
    of_tests: dict[str, dict[str, str]] = defaultdict(dict)
    for row, name in shown.items():
        of_tests[rows.shards[rows.shard[row]]][_hex(rows.source_id[row], 16)] = name
    return CorpusFacts(limits=limits, duplicates=dict(duplicates), contaminated=dict(of_tests),
                       taken_down={shard: sorted(ids) for shard, ids in taken_down.items()})


def threshold(values: NDArray[Any], wanted: Threshold) -> float:
    """The percentile of the values, held between two absolute bounds. NaN does not count."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return wanted.at_least
    found = float(f"{np.percentile(values, wanted.percentile):.{SIGNIFICANT_DIGITS}g}")
    return min(max(found, wanted.at_least), wanted.at_most)


# duplicates

def _losers(rows: Rows, contenders: NDArray[Any], rule: SelectionRule) -> Iterator[tuple[int, str, str]]:
    """(row, reason, id of who won) for every contender that is a copy of a better one.

    Better: more pixels, then more bytes, then the smaller image_id, then the smaller source_id. From the best to the worst, a row is kept
    unless a kept one is its copy: so a chain of small changes does not make strangers of one group.
    """
    order = contenders[rank(rows, contenders)]
    _, first = np.unique(rows.image_id[order], return_index=True)
    survivor_of = dict(zip(rows.image_id[order[first]].tolist(), order[first].tolist()))
    survives = np.zeros(len(rows), dtype=bool)
    survives[order[first]] = True
    for row in order[~survives[order]].tolist():
        yield row, DUPLICATE_EXACT, _hex(rows.source_id[survivor_of[rows.image_id[row]]], 16)
    order = order[survives[order]]
    for loser, winner in near_losers(rows.words_NF4, order[rows.is_clear[order]], rule.near_radius):
        survives[loser] = False
        yield loser, DUPLICATE_NEAR, _hex(rows.image_id[winner], 32)
    if rule.semantic is not None and rows.vectors_ND is not None:
        order = order[survives[order] & rows.vectors_ND[order].any(axis=1)]
        for loser, winner in semantic_losers(rows.vectors_ND, order, rule.semantic):
            yield loser, DUPLICATE_SEMANTIC, _hex(rows.image_id[winner], 32)


def rank(rows: Rows, which: NDArray[Any]) -> NDArray[Any]:
    """Positions in `which`, the best row first."""
    keys = (rows.source_id[which], rows.image_id[which], -rows.measures[RANKED_BY][which], -rows.pixels[which])
    return np.lexsort(keys)  # the last key decides first


# reading

def load_rows(dataset: Dataset, scores: Snapshot, rule: SelectionRule, parts: bool = False) -> Rows:
    """Read the columns that are needed, shard after shard, into arrays that are made once; with `parts` also what test sets need."""
    names = sorted({RANKED_BY, *(one.measure for one in rule.limits())})
    columns = [*COLUMNS, *(["phash_parts"] if parts else []), *(name for name in names if name not in COLUMNS)]
    rows = _empty(scores.rows, names, list(scores.shards))
    if rule.semantic is not None:
        rows = replace(rows, vectors_ND=_embeddings(dataset, scores))
    if parts:
        rows = replace(rows, shows_NK4=_in_a_file((scores.rows, 1 + PARTS, WORDS), np.uint64))
    low = 0
    for shard, ref in enumerate(scores.shards.values()):
        table = dataset.read(ref, columns)
        at = slice(low, low := low + table.num_rows)
        rows.shard[at] = shard
        rows.image_id[at], rows.source_id[at] = _digests(table["image_id"], 32), _digests(table["source_id"], 16)
        rows.pixels[at] = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
        rows.short_side[at] = table["short_side"].to_numpy()
        for name in names:
            rows.measures[name][at] = table[name].to_numpy()
        rows.words_NF4[at], rows.is_clear[at] = forms_of(table), table["phash_quality"].to_numpy() >= LEAST_QUALITY
        if rows.shows_NK4 is not None:
            rows.shows_NK4[at] = shown_by(table)
    return rows


def _in_a_file(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """An array in a file that ends with the process: the mapping keeps it until it is gone itself. Raises ValueError where the disk has
    no room for it: a write that finds none would end the process without a word."""
    size_bytes, folder = math.prod(shape) * np.dtype(kind).itemsize, tempfile.gettempdir()
    if not size_bytes:
        return np.zeros(shape, kind)
    if size_bytes > (free_bytes := shutil.disk_usage(folder).free):
        raise ValueError(f"{folder} has {free_bytes / 1e9:.1f} GB free, and {size_bytes / 1e9:.1f} GB are needed to look through the "
                         "corpus: free some space, or name another folder with TMPDIR")
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, kind, "w+", shape=shape)


def _embeddings(dataset: Dataset, scores: Snapshot) -> NDArray[Any] | None:
    """vectors_ND in a file that ends with the process; None where no row has one. Raises ValueError where their lengths differ."""
    vectors_ND: NDArray[Any] | None = None
    low = 0
    for ref in scores.shards.values():
        for at, data in enumerate(dataset.read(ref, ["embedding"])["embedding"].to_pylist(), low):
            if data is None:
                continue
            if vectors_ND is None:
                vectors_ND = _in_a_file((scores.rows, len(data) // 2), np.float16)
            if len(data) != 2 * vectors_ND.shape[1]:
                raise ValueError(f"embeddings of {len(data) // 2} and of {vectors_ND.shape[1]} dimensions stand in one scores table: "
                                 "measure all of them with one models.embedding")
            vectors_ND[at] = np.frombuffer(data, np.float16)
        low += ref.rows
    return vectors_ND


def forms_of(scores: pa.Table) -> NDArray[Any]:
    """words_NF4 of a scores table: what is compared of each picture."""
    own, crops = _hashes(scores["phash"]), _hashes(scores["phash_crops"]).reshape(-1, len(CROPS), WORDS)
    return np.concatenate([own[:, None], turned(own)[:, None], crops], axis=1)


def shown_by(scores: pa.Table) -> NDArray[Any]:
    """words_NK4 of a scores table: what may be a test picture, whole or as a part."""
    own, rest = _hashes(scores["phash"]), _hashes(scores["phash_parts"]).reshape(-1, PARTS, WORDS)
    return np.concatenate([own[:, None], rest], axis=1)


def _empty(count: int, measures: list[str], shards: list[str]) -> Rows:
    return Rows(image_id=np.zeros(count, "S32"), source_id=np.zeros(count, "S16"), shard=np.zeros(count, np.int32),
                pixels=np.zeros(count, np.int64), short_side=np.zeros(count, np.int32), is_clear=np.zeros(count, bool),
                measures={name: np.zeros(count) for name in measures},
                words_NF4=np.zeros((count, 2 + len(CROPS), WORDS), np.uint64), shards=shards)


def _digests(column: pa.ChunkedArray, size_bytes: int) -> NDArray[Any]:
    """Hex text as fixed-width bytes: a third of the memory, and sorted as the text would be."""
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), dtype=f"V{size_bytes}").view(f"S{size_bytes}")


def _hashes(column: pa.ChunkedArray) -> NDArray[Any]:
    return to_words(bytes.fromhex("".join(column.to_pylist())))


def _among(rows: Rows, ids: frozenset[str]) -> NDArray[Any]:
    images = np.array([bytes.fromhex(one) for one in ids if IMAGE_ID.fullmatch(one)], dtype="S32")  # addresses are on the list too
    sources = np.array([bytes.fromhex(one) for one in ids if SOURCE_ID.fullmatch(one)], dtype="S16")
    return np.isin(rows.image_id, images) | np.isin(rows.source_id, sources)


def _hex(digest: Any, size_bytes: int) -> str:
    return bytes(digest).ljust(size_bytes, b"\0").hex()  # numpy drops trailing zero bytes
