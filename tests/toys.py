"""A toy stage, importable by workers, and stores that fail as disks and machines do."""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from infra.config import RunOptions
from infra.dataset import Dataset, Snapshot
from infra.ledger import Outcome
from infra.local_store import LocalStore
from infra.storage import Entry, Store, unique_name
from pipelines.runtime import job
from pipelines.runtime.cluster import WorkerOptions
from pipelines.runtime.plan import ShardTask
from pipelines.runtime.stage import Result
from pipelines.runtime.worker import ShardReport, ShardWorker

T = TypeVar("T")
OPTIONS = RunOptions(recipe="test")
MEASURES = pa.schema([("image_id", pa.string()), ("checksum", pa.int64()), ("length", pa.float64())])


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Checksums of encoded images; images below the threshold are rejected. Some ids may misbehave."""

    threshold: int = 0
    version: int = 1
    raises: tuple[str, ...] = ()
    dies: tuple[str, ...] = ()
    setup_error: str = ""
    delay_s: float = field(default=0.0, metadata={"result": False})
    name: str = "measure"
    table: str = "scores"
    row_id: str = "image_id"
    keeps_rejected: bool = False

    def setup(self) -> None:
        if self.setup_error:
            raise OSError(self.setup_error)

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        measured, outcomes = [], []
        for row in rows["images"].select(["image_id", "bytes"]).to_pylist():
            self._misbehave(row["image_id"])
            checksum = (zlib.crc32(row["bytes"]) + int(params.get("offset", 0))) % 1000
            if checksum < self.threshold:
                outcomes.append(Outcome(row["image_id"], "rejected", "too_low", str(checksum)))
            else:
                measured.append({"image_id": row["image_id"], "checksum": checksum, "length": float(len(row["bytes"]))})
        return Result(pa.Table.from_pylist(measured, schema=MEASURES), outcomes)

    def _misbehave(self, image_id: str) -> None:
        time.sleep(self.delay_s)
        if image_id in self.raises:
            raise ArithmeticError(f"row {image_id} is no good")
        if image_id in self.dies:
            os._exit(77)


@dataclass(frozen=True, kw_only=True)
class Traced(Measure):
    """The same results; each process of a shard leaves a file named after the raylet that started its worker."""

    traces: str = field(default="", metadata={"result": False})

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        if rows["images"].num_rows:
            Path(self.traces, unique_name(str(os.getppid()), ".shard")).touch()
        return super().process(rows, params)


def toy_images(dataset: Dataset, sizes: Sequence[int], salt: str = "") -> Snapshot:
    """An images table of shards with so many rows each."""
    from tests.helpers import commit_table

    ids = [[f"{salt}{shard}-{row}" for row in range(size)] for shard, size in enumerate(sizes)]
    schema = pa.schema([("image_id", pa.string()), ("bytes", pa.binary())])
    tables = [pa.table({"image_id": shard, "bytes": [one.encode() * 3 for one in shard]}, schema=schema) for shard in ids]
    return commit_table(dataset, "images", tables, {"salt": salt, "sizes": list(sizes)})


def run_here(stage: Any, dataset: Dataset, images: Snapshot, *, order: Sequence[int] | None = None, workers: int = 1,
             params_for_shard: Any = None) -> Snapshot:
    """`run_stage` with its workers in this process, taking the tasks in the given order; everything else is the real thing."""

    def run_tasks(stage: Any, source: Dataset, output: Dataset, tasks: list[ShardTask], options: WorkerOptions) -> Iterator[ShardReport]:
        pool = [ShardWorker(stage, source, output) for _ in range(workers)]
        shuffled = [tasks[i] for i in order if i < len(tasks)] if order is not None else tasks
        for i, task in enumerate(shuffled):
            yield pool[i % workers].run(task)

    real, job.run_tasks = job.run_tasks, run_tasks
    try:
        snapshot = job.run_stage(stage, source=dataset, inputs={"images": images}, output=dataset, options=OPTIONS,
                                 workers=WorkerOptions(), params_for_shard=params_for_shard)
    finally:
        job.run_tasks = real
    assert snapshot is not None, "only a dry run returns nothing"
    return snapshot


class Crash(BaseException):
    """The machine is switched off: nothing of ours catches it."""


class CrashingStore:
    """A local store on a machine that is switched off at its n-th operation: before it, in the middle of it or after it."""

    def __init__(self, url: str, operation: int, moment: str) -> None:
        self.inner = LocalStore(url)
        self.url = url
        self.left = operation
        self.moment = moment

    def _now(self, moment: str) -> None:
        if self.left == 0 and self.moment == moment:
            raise Crash(moment)

    def _step(self, call: Any, *args: Any) -> Any:
        self._now("before")
        if self.left == 0 and self.moment == "middle" and call.__name__ in ("put", "create"):
            key, data = args
            name = key if call.__name__ == "put" else str(Path(key).with_name(f".{Path(key).name}.0123456789abcdef.part"))
            self.inner.put(name, data[:len(data) // 2])  # what a SIGKILL leaves: half a file under the name that was being written
        self._now("middle")
        result = call(*args)
        self._now("after")
        self.left -= 1
        return result

    def child(self, *parts: str) -> Store:
        return self.inner.child(*parts)

    def open(self, key: str) -> BinaryIO:
        return self._step(self.inner.open, key)  # type: ignore[no-any-return]

    def read(self, key: str) -> bytes:
        return self._step(self.inner.read, key)  # type: ignore[no-any-return]

    def put(self, key: str, data: bytes) -> None:
        self._step(self.inner.put, key, data)

    def write(self, key: str, produce: Callable[[BinaryIO], T]) -> T:
        sink = io.BytesIO()
        told = produce(sink)
        self._step(self.inner.put, key, sink.getvalue())
        return told

    def create(self, key: str, data: bytes) -> bool:
        return self._step(self.inner.create, key, data)  # type: ignore[no-any-return]

    def delete(self, key: str) -> None:
        self._step(self.inner.delete, key)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self._step(lambda: None)
        return self.inner.list(prefix)

    def check(self, *, write: bool = False) -> None:
        self.inner.check(write=write)
