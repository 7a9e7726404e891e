"""Jobs without Ray: the workers run in this process, everything else is the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from infra.dataset import Dataset
from pipelines.runtime import job
from pipelines.runtime.cluster import WorkerOptions
from pipelines.runtime.plan import ShardTask
from pipelines.runtime.worker import ShardReport, ShardWorker


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Entries' `main` runs its stages here; the list tells which shards were done: `<stage> <shard>`."""
    done: list[str] = []

    def run_tasks(stage: Any, source: Dataset, output: Dataset, tasks: list[ShardTask], options: WorkerOptions) -> Iterator[ShardReport]:
        worker = ShardWorker(stage, source, output)
        for task in tasks:
            done.append(f"{stage.name} {task.shard}")
            yield worker.run(task)

    monkeypatch.setattr(job, "run_tasks", run_tasks)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return done
