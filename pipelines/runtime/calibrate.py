"""What a job will take, from a few rows that one worker does before the job is paid for."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from infra.dataset import Dataset
from pipelines.runtime.plan import ShardTask
from pipelines.runtime.stage import Sparse, Stage

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What one worker took: seconds to set up, then rows and seconds after a warm-up, and its memory at most.

    `rows` are of those that cost time.
    """

    setup_s: float
    rows: int
    seconds: float
    memory_bytes: int
    gpu_memory_bytes: int = 0

    def estimate(self, rows: int, workers: int, price_per_worker_hour: float) -> str:
        """Hours and cost of so many rows, in words."""
        rate = self.rows / max(self.seconds, 1e-9)
        hours = rows / rate / 3600 / max(1, workers) + self.setup_s / 3600
        gpu = f" and {self.gpu_memory_bytes / GIB:.1f} GiB of its GPU" if self.gpu_memory_bytes else ""
        cost = f", cost {hours * max(1, workers) * price_per_worker_hour:,.2f}" if price_per_worker_hour else ""
        return (f"measured on {self.rows} rows after a warm-up: {rate:.2f} rows/s a worker, {self.setup_s:.0f} s to set up, "
                f"{self.memory_bytes / GIB:.1f} GiB of memory{gpu}; {rows} rows on {max(1, workers)} workers: {hours:.2f} hours{cost}")


def calibrate(stage: Stage, source_url: str, task: ShardTask, rows: int) -> dict[str, Any]:
    """Do the first `rows` rows of a shard that cost time, a quarter of them before that to warm up, and throw the result away.

    Runs on a worker. Raises ValueError for a shard without such a row.
    """
    source = Dataset(source_url)
    tables = {table: source.read(ref) for table, ref in task.inputs.items()}
    primary = next(iter(tables))
    start = time.monotonic()
    stage.setup()
    setup_s = time.monotonic() - start
    places = stage.work(tables, task.params) if isinstance(stage, Sparse) else list(range(tables[primary].num_rows))
    if not places:
        raise ValueError(f"shard {task.shard} holds no row to try")
    tried = tables[primary].take(places[:rows])
    stage.process({**tables, primary: tried.slice(0, max(1, tried.num_rows // 4))}, task.params)
    start = time.monotonic()
    stage.process({**tables, primary: tried}, task.params)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0
    return asdict(Calibration(setup_s=setup_s, rows=tried.num_rows, seconds=seconds, memory_bytes=peak, gpu_memory_bytes=gpu))
