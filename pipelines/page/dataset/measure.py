"""Distributions of what was measured, the thresholds in them, and the pictures that lie next to a threshold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.page.content import Picture
from pipelines.page.dataset.content import Limit, Measure, Shown
from pipelines.page.markup import words

BINS = 48  # choice: bars of 9 pixels
LOGARITHMIC_SPREAD = 50.0  # choice: from here on a linear axis shows one bar
NEAR = 4  # choice: pictures on each side of a threshold
# What a thumbnail hides:
DETAILS = frozenset(("sharpness", "noise", "overshoot", "cutoff", "blockiness", "jpeg_quality", "bits_per_pixel", "repeats"))


def distribution(
    name: str, values: NDArray[Any], reasons: NDArray[Any], limits: Iterable[Limit] = (), near: Iterable[Shown] = ()
) -> Measure:
    """Counts by bin; `reasons` says of each value why its row was rejected, "" for kept.

    The outer half per cent on each side is counted in the outer bins, so that one outlier does not flatten the rest.
    """
    there = np.isfinite(values)
    values, reasons, limits = values[there], reasons[there], list(limits)
    low, high = np.percentile(values, [0.5, 99.5])
    inside = [limit.value for limit in limits if np.isfinite(limit.value)]
    low, high = min([low, *inside]), max([high, *inside])
    logarithmic = bool(low > 0 and high / low > LOGARITHMIC_SPREAD)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    clipped = np.clip(values, edges[0], edges[-1])
    kept, here = reasons == "", np.isin(reasons, [limit.reason for limit in limits])
    counts = [np.histogram(clipped[mask], edges)[0].tolist() for mask in (kept, here, ~kept & ~here)]
    return Measure(
        name=name, edges=edges.tolist(), kept=counts[0], rejected=counts[1], others=counts[2], logarithmic=logarithmic, limits=limits,
        near=list(near), magnified=name in DETAILS,
    )  # fmt: skip


def next_to(
    values: NDArray[Any], reasons: NDArray[Any], source_ids: list[str], limits: Iterable[Limit], among: Iterable[str], count: int = NEAR
) -> list[str]:
    """source_ids of the rows nearest to each threshold on both sides, of those `among` the pictures, sorted by value.

    Rows that were kept, or rejected by this very threshold, come before those that another reason has taken out anyway.
    """
    shown = set(among)
    rows = np.array([i for i, one in enumerate(source_ids) if one in shown and np.isfinite(values[i])], dtype=int)
    chosen: set[int] = set()
    for limit in limits:
        distance = values[rows] - limit.value
        foreign = ~np.isin(reasons[rows], ["", limit.reason])
        for side in (distance < 0, distance >= 0):
            nearest = rows[side][np.lexsort((np.abs(distance[side]), foreign[side]))[:count]]
            chosen |= set(nearest.tolist())
    return [source_ids[i] for i in sorted(chosen, key=lambda i: (values[i], source_ids[i]))]


def beside(
    order: list[str], values: Mapping[str, float], fates: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, Picture]
) -> list[Shown]:
    """Pictures with the value that was measured, in the order given."""
    found = []
    for source_id in order:
        if source_id in pictures:
            fate = fates.get(source_id, {"accepted": True, "reason": ""})
            note = f"{values[source_id]:.4g}" + (f", {words(fate['reason'])}" if fate["reason"] else "")
            found.append(Shown(picture=pictures[source_id], kept=bool(fate["accepted"]), note=note))
    return found
