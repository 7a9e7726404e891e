"""What has to be done: the shards of the inputs whose commit does not exist yet. Integer and hash arithmetic, no work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.dataset import Dataset, ShardRef, Snapshot, hash_config
from infra.storage import StorageError
from pipelines.runtime.stage import Stage, version_of

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to do: where its inputs are, and the name that its result will have."""

    shard: str
    key: str
    inputs: dict[str, ShardRef]  # table -> shard that is read; the first is the primary table
    params: Params


def plan_tasks(stage: Stage, inputs: dict[str, Snapshot], params_for_shard: Callable[[str], Params] | None = None) -> list[ShardTask]:
    """One task per shard of the primary table, in the order of the shards. Raises StorageError if another input lacks a shard."""
    primary = next(iter(inputs.values()))
    return [_task(stage, shard, inputs, params_for_shard(shard) if params_for_shard else {}) for shard in primary.shards]


def _task(stage: Stage, shard: str, inputs: dict[str, Snapshot], params: Params) -> ShardTask:
    for table, snapshot in inputs.items():
        if shard not in snapshot.shards:
            raise StorageError(f"stage {stage.name!r}: shard {shard} is missing in table {table!r} (it has {len(snapshot.shards)} "
                               f"shards): run the job that writes {table!r} again")
    refs = {table: snapshot.shards[shard] for table, snapshot in inputs.items()}
    digests = {table: ref.digest for table, ref in refs.items()}
    return ShardTask(shard=shard, key=hash_config([version_of(stage), digests, params]), inputs=refs, params=params)


def split_done(output: Dataset, stage: Stage, tasks: list[ShardTask]) -> tuple[dict[str, str], list[ShardTask]]:
    """(shard -> commit name of what is done, tasks that are pending)."""
    committed = output.committed(stage.table, version_of(stage))
    done = {task.shard: committed[task.shard, task.key] for task in tasks if (task.shard, task.key) in committed}
    return done, [task for task in tasks if task.shard not in done]
