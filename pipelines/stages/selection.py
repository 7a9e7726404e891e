"""scores -> selections: a rule applied to what was measured and to what the whole corpus told. Cheap, and done again when either changes.

The first reason that holds is given: `taken_down`, `contaminated` (`value`: the test picture that it shows),
`too_small`, then the limits in the order in which SelectionRule names them, then
`duplicate_exact`, `duplicate_near`, `duplicate_semantic`. `value` is what was measured and the limit, or for a duplicate the winner
(exact: its source_id; else: its image_id).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result

SCHEMA = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("accepted", pa.bool_()), ("reason", pa.string()),
                    ("value", pa.string())])
CONTAMINATED = "contaminated"
DUPLICATE_EXACT = "duplicate_exact"
DUPLICATE_NEAR = "duplicate_near"
DUPLICATE_SEMANTIC = "duplicate_semantic"
TAKEN_DOWN = "taken_down"
MIN, MAX = "min", "max"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A percentile of the corpus, held between two absolute bounds: a good corpus loses nothing needed, a bad one keeps nothing bad."""

    percentile: float
    at_least: float
    at_most: float

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100 or self.at_least > self.at_most:
            raise ValueError(f"threshold at percentile {self.percentile} between {self.at_least} and {self.at_most}: expected a "
                             "percentile of 0 to 100, and at_least no larger than at_most")


def fixed(value: float) -> Threshold:
    """A threshold that stands, whatever the corpus is."""
    return Threshold(percentile=50, at_least=value, at_most=value)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One measure of the rule. `side` MIN: what lies below the threshold is rejected for `reason`; MAX: what lies above."""

    measure: str
    side: str
    reason: str
    threshold: Threshold
    model: str  # of stages/models.py that must be configured for the measure to exist; empty for none

    def fails(self, value: Any, bound: float) -> Any:
        """Of a number, or element by element of an array. What was not measured (None, NaN) does not fail."""
        if value is None:
            return False
        return value < bound if self.side == MIN else value > bound

    def told(self, value: float, bound: float) -> str:
        """What was measured, and the limit, for a person."""
        return f"{value:.3g} {'<' if self.side == MIN else '>'} {bound:.3g}"


def judged(side: str, reason: str, *, model: str = "") -> dict[str, str]:
    """The metadata of a field of SelectionRule that limits the measure of its name."""
    return {"side": side, "reason": reason, "model": model}


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """What an accepted picture is. Lengths in pixels, `near_radius` in bits of 256, `semantic` a cosine between embeddings (None:
    not looked at). A field that is `judged` limits the column of
    its name in `scores` (docs/data.md), None does not; to judge by another column, add one line at the place of its reason in the order."""

    min_short_side: int
    near_radius: int
    semantic: float | None = None
    border_px: Threshold | None = field(default=None, metadata=judged(MAX, "border"))
    seam: Threshold | None = field(default=None, metadata=judged(MAX, "straight_seam"))
    entropy: Threshold | None = field(default=None, metadata=judged(MIN, "few_tones"))
    dark_share: Threshold | None = field(default=None, metadata=judged(MAX, "too_dark"))
    bright_share: Threshold | None = field(default=None, metadata=judged(MAX, "too_bright"))
    colourfulness: Threshold | None = field(default=None, metadata=judged(MIN, "no_colour"))
    flatness: Threshold | None = field(default=None, metadata=judged(MAX, "too_flat"))
    sharpness: Threshold | None = field(default=None, metadata=judged(MIN, "too_blurred"))
    repeats: Threshold | None = field(default=None, metadata=judged(MAX, "graphic"))
    text_area: Threshold | None = field(default=None, metadata=judged(MAX, "text"))
    cutoff: Threshold | None = field(default=None, metadata=judged(MIN, "low_resolution"))
    jpeg_quality: Threshold | None = field(default=None, metadata=judged(MIN, "low_jpeg_quality"))
    bits_per_pixel: Threshold | None = field(default=None, metadata=judged(MIN, "few_bits"))
    blockiness: Threshold | None = field(default=None, metadata=judged(MAX, "blocky"))
    noise: Threshold | None = field(default=None, metadata=judged(MAX, "noisy"))
    overshoot: Threshold | None = field(default=None, metadata=judged(MAX, "over_sharpened"))
    face_count: Threshold | None = field(default=None, metadata=judged(MIN, "no_face", model="faces"))
    face_px: Threshold | None = field(default=None, metadata=judged(MIN, "small_face", model="faces"))
    nsfw: Threshold | None = field(default=None, metadata=judged(MAX, "nsfw", model="nsfw"))
    watermark: Threshold | None = field(default=None, metadata=judged(MAX, "watermark", model="watermark"))
    aesthetic: Threshold | None = field(default=None, metadata=judged(MIN, "not_aesthetic", model="aesthetic"))

    def limits(self) -> list[Limit]:
        """What this rule judges by, in the order of the reasons."""
        return [Limit(measure=one.name, threshold=getattr(self, one.name), **one.metadata) for one in fields(self)
                if one.metadata and getattr(self, one.name) is not None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Applies a rule."""

    rule: SelectionRule
    name: str = "selection"
    version: int = 3
    table: str = "selections"
    row_id: str = "source_id"
    keeps_rejected: bool = field(default=True)

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """`params` are those of corpus_facts.CorpusFacts.params."""
        decided = [self._decide(row, params) for row in rows["scores"].to_pylist()]
        outcomes = [Outcome(row["source_id"], "rejected", row["reason"], row["value"]) for row in decided if not row["accepted"]]
        return Result(pa.Table.from_pylist(decided, schema=SCHEMA), outcomes)

    def _decide(self, row: Row, params: dict[str, Any]) -> Row:
        reason, value = self._reason(row, params)
        return {"image_id": row["image_id"], "source_id": row["source_id"], "accepted": not reason, "reason": reason, "value": value}

    def _reason(self, row: Row, params: dict[str, Any]) -> tuple[str, str]:
        if row["source_id"] in params["taken_down"]:
            return TAKEN_DOWN, ""
        if name := params["contaminated"].get(row["source_id"]):
            return CONTAMINATED, name
        if row["short_side"] < self.rule.min_short_side:
            return "too_small", f"{row['width']} x {row['height']} px"
        for one in self.rule.limits():
            if one.fails(row[one.measure], bound := params["limits"][one.measure]):
                return one.reason, one.told(row[one.measure], bound)
        reason, value = params["duplicates"].get(row["source_id"], ("", ""))
        return reason, value
