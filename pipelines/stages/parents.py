"""Which images become parents of negative samples: the accepted ones whose hash comes first, evenly over the whole corpus."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from infra.dataset import Dataset, Snapshot
from infra.holdout import is_held_out
from pipelines.stages.captions import seed_of

HASH_RANGE = 1 << 63  # seed_of gives 63 bits


@dataclass(frozen=True, kw_only=True)
class ParentChoice:
    """How many parents: `count`, or the `fraction` (0 to 1) of the accepted images; exactly one of the two.

    `exclude_heldout` leaves out the photographs that are scored: a negative shows half of its parent.
    """

    count: int | None = None
    fraction: float | None = None
    exclude_heldout: bool = True

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"parents.count is {self.count}, expected 1 or more")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"parents.fraction is {self.fraction}, expected more than 0 and at most 1")


def choose_parents(dataset: Dataset, selections: Snapshot, choice: ParentChoice, seed: int) -> dict[str, list[str]]:
    """Shard -> source_ids of its parents, sorted. Reads the selections alone, and keeps no more than what is chosen.

    An image is chosen by the hash of its id and `seed`: neither its shard nor the other images move it, except across the
    boundary where `count` ends.
    """
    if (choice.count is None) == (choice.fraction is None):  # not asked of ParentChoice, whose fields are set one after the other
        raise ValueError(f"parents: count is {choice.count} and fraction {choice.fraction}: set one of them, the other to none")
    ranked = _ranked(dataset, selections, choice.exclude_heldout, seed)
    if choice.count is not None:
        chosen = heapq.nsmallest(choice.count, ranked)
    else:
        limit = (choice.fraction or 0) * HASH_RANGE
        chosen = [one for one in ranked if one[0] < limit]
    parents: dict[str, list[str]] = {shard: [] for shard in selections.shards}
    for _, source_id, shard in chosen:
        parents[shard].append(source_id)
    return {shard: sorted(ids) for shard, ids in parents.items()}


def _ranked(dataset: Dataset, selections: Snapshot, exclude_heldout: bool, seed: int) -> Iterator[tuple[int, str, str]]:
    for shard, ref in selections.shards.items():
        rows = dataset.read(ref, ["image_id", "source_id", "accepted"]).to_pylist()
        for row in rows:
            if row["accepted"] and not (exclude_heldout and is_held_out(row["image_id"])):
                yield seed_of(row["image_id"], f"parent {seed}"), row["source_id"], shard
