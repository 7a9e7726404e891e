"""Selections: one row for each score, and the first reason that holds."""

from __future__ import annotations

from pipelines.stages.selection import SCHEMA, Selection
from tests.unit.pipelines.score_rows import RULE, row, source_id, table

PARAMS = {"limits": {"sharpness": 10.0, "flatness": 0.5}, "taken_down": [source_id("gone")],
          "duplicates": {source_id("copy"): ["duplicate_exact", "w"], source_id("blurred copy"): ["duplicate_near", "w"]},
          "contaminated": {source_id("test"): "set/a.png"}}


def test_every_reason_and_its_value() -> None:
    scores = table(row("good"), row("gone", width=1), row("small", height=99, flatness=1), row("flat", flatness=0.51, sharpness=1),
                   row("blurred", sharpness=9.9), row("copy"), row("blurred copy", sharpness=1), row("test", height=9),
                   row("limit", sharpness=10, flatness=0.5))
    result = Selection(rule=RULE).process({"scores": scores}, PARAMS)
    found = [(one["accepted"], one["reason"], one["value"]) for one in result.table.to_pylist()]
    assert found == [(True, "", ""), (False, "taken_down", ""), (False, "too_small", "200 x 99 px"), (False, "too_flat", "0.51 > 0.5"),
                     (False, "too_blurred", "9.9 < 10"), (False, "duplicate_exact", "w"), (False, "too_blurred", "1 < 10"),
                     (False, "contaminated", "set/a.png"), (True, "", "")]
    first = result.outcomes[0]
    assert (first.row_id, first.status, first.reason) == (source_id("gone"), "rejected", "taken_down")
    assert len(result.outcomes) == 7
    assert result.table.schema == SCHEMA


def test_no_rows_have_the_schema() -> None:
    assert Selection(rule=RULE).process({"scores": table()}, PARAMS).table.schema == SCHEMA
