"""The thresholds of a selection as they were resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpus_facts import threshold
from pipelines.page.dataset.content import Limit
from pipelines.page.reading import Row
from pipelines.stages.selection import SelectionRule, Threshold

TOLD = re.compile(r"[<>] (\S+)$")  # what Limit.told ends with
SHORT_SIDE = "short_side"


def limits(rule: Mapping[str, Any], fates: Iterable[Row], measures: Mapping[str, NDArray[Any]]) -> dict[str, list[Limit]]:
    """Measure -> its limits. `rule` is the rule in the snapshot's configuration.

    A resolved threshold stands in the value of every row that it rejected; where it rejected none of the sample, it is taken from
    the sample by the rule's percentile and bounds.
    """
    told = {row["reason"]: match[1] for row in fates if row["reason"] and (match := TOLD.search(row["value"]))}
    found: dict[str, list[Limit]] = {}
    if SHORT_SIDE in measures and rule.get("min_short_side"):
        side_px = rule["min_short_side"]
        found[SHORT_SIDE] = [Limit(reason="too_small", value=float(side_px), side="min", flags=f"--set rule.min_short_side={side_px}",
                                   origin=f"stands at {side_px}, whatever the corpus is")]
    for one in fields(SelectionRule):
        wanted = rule.get(one.name)
        if not one.metadata or wanted is None or one.name not in measures:
            continue
        reason = one.metadata["reason"]
        values = measures[one.name]
        value = float(told[reason]) if reason in told else threshold(values[np.isfinite(values)], Threshold(**wanted))
        parts = ("percentile", "at_least", "at_most")[wanted["at_least"] == wanted["at_most"]:]  # one that stands has no percentile
        limit = Limit(reason=reason, value=value, side=one.metadata["side"], origin=_origin(Threshold(**wanted), value),
                      flags=" ".join(f"--set rule.{one.name}.{key}={wanted[key]:g}" for key in parts))
        found[one.name] = [limit]
    return found


def _origin(threshold: Threshold, value: float) -> str:
    """Where a limit comes from, in words."""
    low, high = threshold.at_least, threshold.at_most
    if low == high:
        return f"stands at {low:g}, whatever the corpus is"
    held = next((f", where the {side} bound holds it" for side, bound in (("lower", low), ("upper", high)) if value == bound), "")
    return f"percentile {threshold.percentile:g} of the corpus, between {low:g} and {high:g}{held}"
