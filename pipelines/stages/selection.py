"""scores -> selections: a rule applied to what was measured and to what the whole corpus told. Cheap, and done again when either changes.

The first reason that holds is given, in this order: `taken_down`, `too_small`, `too_flat`, `too_blurred`, `duplicate_exact`,
`duplicate_near`. `value` is what was measured, or for a duplicate the winner (exact: its source_id; near: its image_id).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result

SCHEMA = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("accepted", pa.bool_()), ("reason", pa.string()),
                    ("value", pa.string())])
DUPLICATE_EXACT = "duplicate_exact"
DUPLICATE_NEAR = "duplicate_near"
TAKEN_DOWN = "taken_down"
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


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """What an accepted picture is. Lengths in pixels, `near_radius` in bits of 64; the measures are those of stages/measures.py."""

    min_short_side: int
    sharpness: Threshold  # below: too_blurred
    flatness: Threshold  # above: too_flat
    near_radius: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Applies a rule."""

    rule: SelectionRule
    name: str = "selection"
    version: int = 1
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
        reason, value = "", ""
        if row["source_id"] in params["taken_down"]:
            reason = TAKEN_DOWN
        elif row["short_side"] < self.rule.min_short_side:
            reason, value = "too_small", f"{row['width']} x {row['height']} px"
        elif row["flatness"] > params["flatness_max"]:
            reason, value = "too_flat", f"{row['flatness']:.3g} > {params['flatness_max']:.3g}"
        elif row["sharpness"] < params["sharpness_min"]:
            reason, value = "too_blurred", f"{row['sharpness']:.3g} < {params['sharpness_min']:.3g}"
        elif row["source_id"] in params["duplicates"]:
            reason, value = params["duplicates"][row["source_id"]]
        return {"image_id": row["image_id"], "source_id": row["source_id"], "accepted": not reason, "reason": reason, "value": value}
