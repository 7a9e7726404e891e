"""What captioners said: who, how long, in which words, and what was said twice."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from pipelines.page.content import Picture
from pipelines.page.corpus import losses
from pipelines.page.dataset import measure
from pipelines.page.dataset.content import Captions, Share, Shown
from pipelines.page.dataset.sample import Sample
from pipelines.page.reading import shorten
from pipelines.stages.near_texts import near_groups

MOST_WORDS, MOST_REPEATED = 40, 8  # choice: what is read at a glance
WORD = re.compile(r"[^\W\d_]{4,}")  # shorter ones say nothing of the picture
COMMON = frozenset(("this", "that", "with", "from", "there", "their", "which", "while", "image", "photo", "photograph", "picture", "also"))
CLIP_TOKENS = 77
NOT_ASKED = "not_selected"  # a row that curation had rejected: no fault of a caption
SHOWN_CHARS = 400


def captions(sample: Sample, pictures: dict[str, Picture], most: int) -> Captions | None:
    """The captions of the sample; None without a table of them."""
    if not sample.dataset.has("captions"):
        return None
    rows = list(sample.rows("captions", ["image_id", "caption", "engine", "model", "clip_tokens"]))
    said = Counter(word for row in rows for word in set(WORD.findall(row["caption"].lower())) - COMMON)
    twice = near_groups([row["caption"] for row in rows])
    ledger = sample.dataset.snapshot("captions").ledger
    return Captions(
        rows=sample.dataset.snapshot("captions").rows,
        engines=[Share(label=label, count=n) for label, n in Counter(who(row) for row in rows).most_common(6)],
        tokens=tokens([row.get("clip_tokens") for row in rows]),
        words=[Share(label=word, count=count) for word, count in said.most_common(MOST_WORDS)],
        repeated=[Share(label=shorten(rows[group[0]]["caption"], 160), count=len(group)) for group in twice[:MOST_REPEATED]],
        near=sum(map(len, twice)),
        sampled=len(rows),
        shown=shown(sample, rows, pictures, most),
        rejected=[Share(label=one.reason, count=one.count) for one in losses(ledger) if one.reason != NOT_ASKED],
        refused=refused(sample, pictures, most),
    )


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
