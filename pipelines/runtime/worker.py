"""Work on one shard: read, process, write, commit. The ten lines around the mathematics, tested without Ray.

A row that raises is failed alone. A row that kills its process (a decoder that crashes, memory that runs out) is found by
bisection: before rows are touched a small marker is written, and afterwards it is removed. Markers that are still there when a
shard is tried again show which rows were in hand when a worker died; rows that twice took a worker down are halved, until one is
left. Markers cannot tell a row that kills from a machine that was switched off, so that row is tried in a process of its own: only
if it takes that one down too is it failed.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset, ShardRef
from infra.ledger import Ledger, Outcome
from infra.shard_file import RowGroups
from infra.storage import StorageError, Store, unique_name
from pipelines.runtime.plan import ShardTask
from pipelines.runtime.stage import Result, Stage, StageUnusable, version_of

DEATHS = 2  # choice: once may be the machine's fault, twice is taken for the rows'
MESSAGE_CHARS = 500  # choice: enough of an error's text to act on


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a worker says of one shard: the commit that stands, or why there is none."""

    shard: str
    ref: ShardRef | None
    error: str | None = None
    elapsed_s: float = 0.0


class SetupFailed(Exception):
    """The stage could not be made ready on this worker: a model that is missing or broken, a device that is not there."""


@dataclass
class ShardWorker:
    """Sets a stage up, once, and does shards with it: one at a time, but the next may begin when half of the last one is written.

    So two threads may call `run`, and the worker holds one shard and a half.
    """

    stage: Stage
    source: Dataset
    output: Dataset
    version: str = field(init=False)
    ready: bool = field(init=False, default=False)
    at_work: threading.Lock = field(init=False, default_factory=threading.Lock)
    counted_until: float = field(init=False, default=0.0)  # the time up to which seconds were reported, so that none is told twice

    def __post_init__(self) -> None:
        self.version = version_of(self.stage)

    def run(self, task: ShardTask) -> ShardReport:
        """Do one shard. Storage that refuses or a failed set-up is reported, not raised: it is the driver's to stop the job."""
        with _Turn(self.at_work) as turn:
            start = time.monotonic()
            try:
                self._set_up()
                committed, attempt = self._work(task, turn)
                ref = committed()
                attempt.clear()
            except (StorageError, SetupFailed, StageUnusable) as error:
                return ShardReport(shard=task.shard, ref=None, error=str(error))
        end = time.monotonic()
        begin, self.counted_until = max(start, self.counted_until), end
        return ShardReport(shard=task.shard, ref=ref, elapsed_s=end - begin)

    def _set_up(self) -> None:
        if self.ready:
            return
        try:
            self.stage.setup()
        except (OSError, ValueError, RuntimeError, ImportError, TypeError, LookupError, AttributeError) as error:
            raise SetupFailed(f"could not set up ({type(error).__name__}): {error}") from error
        self.ready = True

    def _work(self, task: ShardTask, turn: _Turn) -> tuple[Callable[[], ShardRef], _Attempt]:
        """(what commits the shard, the attempt to clear after it). Its rows are held by what commits them alone."""
        start = time.monotonic()
        rows = {table: self.source.read(ref) for table, ref in task.inputs.items()}
        read_s = time.monotonic() - start
        primary = next(iter(rows))
        attempt = _Attempt(self.stage, rows, primary, task, self.output.store)
        result = attempt.all_rows()
        total = rows[primary].num_rows
        ledger = Ledger.of(total, total - len(result.outcomes), result.outcomes)
        _check(self.stage, result, ledger)
        rows.clear()
        return partial(
            self.output.commit, table=self.stage.table, version=self.version, shard=task.shard, key=task.key,
            data=RowGroups(result.table, on_half=turn.over), outcomes=result.outcomes, ledger=ledger,
            inputs={table: ref.digest for table, ref in task.inputs.items()}, stage_version=self.stage.version,
            timings={**result.counted, "read_s": read_s, "total_s": time.monotonic() - start}, sha256_of=result.sha256_of), attempt


class _Turn:
    """Holds a lock until it is over, which any thread may say, more than once."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> _Turn:
        self._held = self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.over()

    def over(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


def _check(stage: Stage, result: Result, ledger: Ledger) -> None:
    expected = ledger.accepted + (sum(ledger.rejected.values()) if stage.keeps_rejected else 0)
    if result.table.num_rows != expected:
        raise AssertionError(f"stage {stage.name!r} returned {result.table.num_rows} rows, its ledger says {expected}: a row vanished")


class _Attempt:
    """One attempt at a shard, with the markers of earlier ones."""

    def __init__(self, stage: Stage, rows: dict[str, pa.Table], primary: str, task: ShardTask, store: Store) -> None:
        self.stage, self.rows, self.primary, self.params = stage, rows, primary, task.params
        self.store = store
        self.folder = f"attempts/{stage.table}/{task.shard}.{task.key}"
        self.deaths = Counter(entry.key.rsplit("/", 1)[1].split(".")[0] for entry in store.list(self.folder))

    def all_rows(self) -> Result:
        return self._span(0, self.rows[self.primary].num_rows)

    def clear(self) -> None:
        for entry in list(self.store.list(self.folder)):
            self.store.delete(entry.key)

    def _span(self, low: int, high: int) -> Result:
        deaths = self.deaths[f"{low}-{high}"]
        if deaths >= DEATHS and high - low > 1:
            return self._halves(low, high)
        rows = {**self.rows, self.primary: self.rows[self.primary].slice(low, high - low)}
        answer = _try_apart(self.stage, rows, self.params, deaths) if deaths >= DEATHS else None
        if answer is None:
            marker = unique_name(f"{self.folder}/{low}-{high}", ".json")
            self.store.put(marker, b"{}")
            try:
                answer = _try(self.stage, rows, self.params)
            finally:
                self.store.delete(marker)  # the process lives, so no row took it down
        if isinstance(answer, Result):
            return answer
        if high - low > 1:
            return self._halves(low, high)
        return self._failed(low, answer)

    def _halves(self, low: int, high: int) -> Result:
        middle = (low + high) // 2
        left, right = self._span(low, middle), self._span(middle, high)
        counted = Counter(left.counted)
        counted.update(right.counted)
        return Result(pa.concat_tables([left.table, right.table]), left.outcomes + right.outcomes, dict(counted),
                      left.sha256_of or right.sha256_of)

    def _failed(self, row: int, why: _Failure) -> Result:
        row_id: Any = self.rows[self.primary].column(self.stage.row_id)[row].as_py()
        nothing = {**self.rows, self.primary: self.rows[self.primary].slice(0, 0)}
        empty = self.stage.process(nothing, self.params).table  # no rows in, no rows out: the table's schema
        return Result(empty, [Outcome(str(row_id), "failed", why.reason, why.detail)])


@dataclass(frozen=True)
class _Failure:
    """What a row did to its worker: an error's class and message, or `WorkerDied`."""

    reason: str
    detail: str


def _try(stage: Stage, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result | _Failure:
    try:
        return stage.process(rows, params)
    except StageUnusable:
        raise
    except Exception as error:  # the one broad except of the tree: whatever a row does, it fails alone
        return _Failure(type(error).__name__, str(error)[:MESSAGE_CHARS])


def _try_apart(stage: Stage, rows: dict[str, pa.Table], params: dict[str, Any], deaths: int) -> Result | _Failure | None:
    """The same in fresh processes. None if they could not be set up (a second model on one GPU): then the markers must decide."""
    context = multiprocessing.get_context("spawn")
    for _ in range(DEATHS):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_serve, args=(theirs, stage, rows, params), daemon=True)
        child.start()
        theirs.close()
        ready = False
        try:
            ready = ours.recv()
            answer: Result | _Failure = ours.recv()
            return answer
        except EOFError:
            child.join()
        if not ready and deaths < 2 * DEATHS:
            return None
    return _Failure("WorkerDied", f"took its worker process down {deaths} times, and then one of its own (exit code {child.exitcode})")


def _serve(answers: Connection, stage: Stage, rows: dict[str, pa.Table], params: dict[str, Any]) -> None:
    stage.setup()
    answers.send(True)
    answers.send(_try(stage, rows, params))
