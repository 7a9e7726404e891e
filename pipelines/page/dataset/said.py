"""What captioners said: who, how long, in which words, and what was said twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from infra.dataset import Dataset, ShardRef
from pipelines.page.content import Picture
from pipelines.page.corpus import losses
from pipelines.page.dataset import measure
from pipelines.page.dataset.content import Captions, Share, Shown, Twice
from pipelines.page.dataset.sample import Sample, evenly
from pipelines.page.reading import shorten
from pipelines.stages.near_texts import heads

MOST_WORDS, MOST_REPEATED = 40, 8  # choice: what is read at a glance
WORD = re.compile(r"[^\W\d_]{4,}")  # shorter ones say nothing of the picture
COMMON = frozenset(("this", "that", "with", "from", "there", "their", "which", "while", "image", "photo", "photograph", "picture", "also"))
CLIP_TOKENS = 77
NOT_ASKED = "not_selected"  # a row that curation had rejected: no fault of a caption
SHOWN_CHARS = 400


def captions(sample: Sample, pictures: dict[str, Picture], most: int, compared: int) -> Captions | None:
    """The captions of the sample, and which of `compared` were said twice; None without a table of them."""
    if not sample.dataset.has("captions"):
        return None
    rows = list(sample.rows("captions", ["image_id", "caption", "engine", "model", "clip_tokens"]))
    said = Counter(word for row in rows for word in set(WORD.findall(row["caption"].lower())) - COMMON)
    twice = said_twice(sample.dataset, compared)
    ledger = sample.dataset.snapshot("captions").ledger
    return Captions(
        rows=sample.dataset.snapshot("captions").rows,
        engines=[Share(label=label, count=n) for label, n in Counter(who(row) for row in rows).most_common(6)],
        tokens=tokens([row.get("clip_tokens") for row in rows]),
        words=[Share(label=word, count=count) for word, count in said.most_common(MOST_WORDS)],
        twice=twice,
        shown=shown(sample, rows, pictures, most),
        rejected=[Share(label=one.reason, count=one.count) for one in losses(ledger) if one.reason != NOT_ASKED],
        refused=refused(sample, pictures, most),
    )


def said_twice(dataset: Dataset, most: int) -> Twice:
    """Captions in nearly the same words, among all of a table, or of so many in evenly spaced shards."""
    snapshot = dataset.snapshot("captions")
    shards = evenly(list(snapshot.shards), max(1, most * len(snapshot.shards) // max(1, snapshot.rows)))
    refs = [snapshot.shards[shard] for shard in shards]
    found = heads(text for ref in refs for text in dataset.read(ref, ["caption"])["caption"].to_pylist())
    first, sizes = np.unique(found, return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:MOST_REPEATED]
    groups = {int(first[one]): int(sizes[one]) for one in largest if sizes[one] > 1}
    texts = dict(_at(dataset, refs, set(groups)))
    return Twice(groups=[Share(label=shorten(texts[place], 160), count=count) for place, count in groups.items()],
                 near=int(sizes[sizes > 1].sum()), compared=len(found))


def _at(dataset: Dataset, refs: list[ShardRef], places: set[int]) -> Iterator[tuple[int, str]]:
    """(position, caption) of some rows of these shards, counted through."""
    low = 0
    for ref in refs:
        here = [place for place in places if low <= place < low + ref.rows]
        if here:
            column = dataset.read(ref, ["caption"])["caption"]
            yield from ((place, column[place - low].as_py()) for place in here)
        low += ref.rows


def who(row: dict[str, str]) -> str:
    """Engine and model, once where they have one name."""
    return " ".join(dict.fromkeys(name for name in (row["engine"], row.get("model", "")) if name))


def tokens(counted: list[int | None]) -> measure.Measure | None:
    """How long captions are for CLIP, and what it reads at once."""
    values = np.array([n for n in counted if n is not None], dtype=np.float64)
    if not len(values):
        return None
    limit = measure.Limit(reason="one window of CLIP", value=float(CLIP_TOKENS), side="max")
    beyond = np.where(values > CLIP_TOKENS, limit.reason, "")
    return measure.distribution("CLIP tokens of a caption", values, beyond, [limit])


def shown(sample: Sample, rows: list[dict[str, str]], pictures: dict[str, Picture], most: int) -> list[Shown]:
    """Pictures with their captions, of those that are opened anyway."""
    of_image = {row["image_id"]: source_id for source_id, row in sample.images.items() if source_id in pictures}
    return [
        Shown(picture=pictures[of_image[row["image_id"]]], kept=True, note=shorten(row["caption"], SHOWN_CHARS))
        for row in rows
        if row["image_id"] in of_image
    ][:most]


def refused(sample: Sample, pictures: dict[str, Picture], most: int) -> list[Shown]:
    """Rejected captions beside their pictures, of those that are opened anyway."""
    found = [
        Shown(picture=pictures[outcome.row_id], kept=False, note=f"{outcome.reason}: {shorten(outcome.detail, SHOWN_CHARS)}")
        for ref in sample.refs("captions", sample.picture_shards)
        for outcome in sample.dataset.outcomes(ref)
        if outcome.reason != NOT_ASKED and outcome.row_id in pictures
    ]
    return sorted(found, key=lambda one: one.note)[:most]
