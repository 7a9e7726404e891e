"""A job: plan the pending shards of a stage, run them, keep the ledger, publish the snapshot."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from infra.config import RunOptions
from infra.dataset import Dataset, ShardRef, Snapshot
from infra.lease import lease
from infra.ledger import Ledger
from infra.storage import StorageError
from infra.tracking import Tracker, check_tracking, open_tracker
from pipelines.runtime.cluster import WorkerOptions, calibrate_on_worker, run_tasks
from pipelines.runtime.plan import Params, ShardTask, plan_tasks, split_done
from pipelines.runtime.stage import Sparse, Stage, result_config, version_of

SHOW_EVERY_S = 2.0  # choice: progress on anything over five seconds


class JobStopped(ValueError):
    """A job stopped itself before its end; what it committed stays."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a job adds to the course of things, in the driver.

    `stop` is asked after every shard, with the ledger of the shards that ended in this run: a text ends the job. `track` adds to the
    tracked run of a job that had work, once its snapshot is published.
    """

    stop: Callable[[Ledger], str | None] | None = None
    track: Callable[[Tracker, Snapshot], None] | None = None


def run_stage(stage: Stage, *, source: Dataset, inputs: dict[str, Snapshot], output: Dataset, options: RunOptions,
              workers: WorkerOptions, params_for_shard: Callable[[str], Params] | None = None,
              hooks: Hooks | None = None, calibrate_rows: int = 0) -> Snapshot | None:
    """Bring a stage's table up to date with its inputs (the first is the primary table) and publish it.

    Shards that are committed under the same key are not done again. Returns the snapshot, or None for a dry run.
    Raises StorageError when storage refused or another job is at work on the table; what was committed until then stays.
    """
    source.store.check()
    output.store.check(write=True)
    check_tracking(options.tracking)
    if options.dry_run:
        _, _, pending = _plan(stage, inputs, output, params_for_shard)
        if pending and calibrate_rows:
            _estimate(stage, source, pending, workers, calibrate_rows)
        return None
    with lease(output.store, stage.table):
        return _run(stage, source, inputs, output, options, workers, params_for_shard, hooks or Hooks())


def _plan(stage: Stage, inputs: dict[str, Snapshot], output: Dataset,
          params_for_shard: Callable[[str], Params] | None) -> tuple[list[ShardTask], dict[str, str], list[ShardTask]]:
    """(all tasks, shard -> commit of what is done, pending tasks), told to the person who waits."""
    tasks = plan_tasks(stage, inputs, params_for_shard)
    done, pending = split_done(output, stage, tasks)
    rows_pending = sum(next(iter(task.inputs.values())).rows for task in pending)
    print(f"{stage.name}: table {stage.table!r} version {version_of(stage)}: {len(tasks)} shards, {len(done)} done, "
          f"{len(pending)} pending ({rows_pending} rows)", flush=True)
    return tasks, done, pending


def _run(stage: Stage, source: Dataset, inputs: dict[str, Snapshot], output: Dataset, options: RunOptions, workers: WorkerOptions,
         params_for_shard: Callable[[str], Params] | None, hooks: Hooks) -> Snapshot:
    tasks, done, pending = _plan(stage, inputs, output, params_for_shard)
    refs = {ref.shard: ref for ref in output.load_commits(done.values())}
    progress = Progress(name=stage.name, shards=len(pending), workers=workers)
    if pending:
        try:
            refs.update(_run_pending(stage, source, output, pending, workers, progress, hooks))
        except JobStopped:
            _track(stage, progress.ledger, progress, options, status="FAILED")
            raise
    _check_ledger(stage, refs, tasks)
    snapshot = output.publish(stage.table, version_of(stage), refs.values(), result_config(stage))
    print(f"{stage.name}: {describe(snapshot.ledger)}; {progress.throughput()}", flush=True)
    if progress.shards:
        _track(stage, snapshot.ledger, progress, options, also=hooks.track and partial(_told, hooks.track, snapshot))
    return snapshot


def _estimate(stage: Stage, source: Dataset, pending: list[ShardTask], workers: WorkerOptions, rows: int) -> None:
    work = [_work(stage, task) for task in pending]
    took, places = calibrate_on_worker(stage, source, pending[work.index(max(work))], rows, workers)
    total = sum(work)
    print(f"{stage.name}: {took.estimate(total, min(places, len(pending)), workers.cost(3600))}", flush=True)


def _work(stage: Stage, task: ShardTask) -> int:
    """How many rows of a shard will cost time: those that the stage names, or that every input accepted."""
    named = stage.amount(task.params) if isinstance(stage, Sparse) else None
    return min(ref.ledger.accepted for ref in task.inputs.values()) if named is None else named


def _told(track: Callable[[Tracker, Snapshot], None], snapshot: Snapshot, tracker: Tracker) -> None:
    track(tracker, snapshot)


def _check_ledger(stage: Stage, refs: dict[str, ShardRef], tasks: list[ShardTask]) -> None:
    for task in tasks:
        asked, ledger = next(iter(task.inputs.values())).rows, refs[task.shard].ledger
        ledger.check()
        if asked != ledger.total:
            raise ValueError(f"{stage.name}: shard {task.shard}: {asked} rows went in, the ledger counts {ledger.total}: rows vanished")


def _run_pending(stage: Stage, source: Dataset, output: Dataset, pending: list[ShardTask], workers: WorkerOptions,
                 progress: Progress, hooks: Hooks) -> dict[str, ShardRef]:
    refs: dict[str, ShardRef] = {}
    for report in run_tasks(stage, source, output, pending, workers):
        if report.ref is None:
            raise StorageError(f"{stage.name}: shard {report.shard}: {report.error}")
        refs[report.shard] = report.ref
        progress.add(report.ref, report.elapsed_s)
        if why := hooks.stop and hooks.stop(progress.ledger):
            raise JobStopped(f"{stage.name}: stopped after {progress.shards_done} of {progress.shards} shards: {why}")
    missing = sorted({task.shard for task in pending} - set(refs))
    if missing:
        raise StorageError(f"{stage.name}: {len(missing)} shards came back without a report ({', '.join(missing[:3])} …): "
                           "run the same command again; it continues")
    return refs


def _track(stage: Stage, ledger: Ledger, progress: Progress, options: RunOptions, status: Literal["FINISHED", "FAILED"] = "FINISHED",
           also: Callable[[Tracker], None] | None = None) -> None:
    told = metrics(ledger, progress)  # before anything that takes time of its own
    tracker = open_tracker(options.tracking, experiment="pipelines", run_name=stage.name)
    tracker.config({"stage": stage.name, "version": version_of(stage), **result_config(stage)})
    tracker.metrics(told, step=0)
    if also:
        also(tracker)
    tracker.close(status)


def describe(ledger: Ledger) -> str:
    """The ledger as one line of words."""
    rejected, failed = sum(ledger.rejected.values()), sum(ledger.failed.values())
    parts = [f"{ledger.total} in = {ledger.accepted} accepted + {rejected} rejected + {failed} failed"]
    reasons = {**ledger.rejected, **ledger.failed}
    if reasons:
        parts.append("(" + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1])) + ")")
    return " ".join(parts)


def metrics(ledger: Ledger, progress: Progress) -> dict[str, float]:
    """The numbers of a job that MLflow compares."""
    counts: dict[str, float] = {"rows/total": ledger.total, "rows/accepted": ledger.accepted}
    counts |= {f"rejected/{reason}": count for reason, count in ledger.rejected.items()}
    counts |= {f"failed/{reason}": count for reason, count in ledger.failed.items()}
    counts |= {f"reject_rate/{reason}": count / max(1, ledger.total) for reason, count in ledger.rejected.items()}
    counts |= {f"fail_rate/{reason}": count / max(1, ledger.total) for reason, count in ledger.failed.items()}
    counts |= {f"seconds/{name.removesuffix('_s')}" if name.endswith("_s") else f"counted/{name}": amount
               for name, amount in progress.counted.items()}  # of all workers together
    cost = {"worker_s_per_thousand": progress.worker_s_per_thousand}
    if progress.cost_per_thousand:
        cost["cost_per_thousand"] = progress.cost_per_thousand
    return counts | {"elapsed_s": progress.elapsed_s, "rows_per_s": progress.rows_per_s, **progress.rates(), **cost}


@dataclass
class Progress:
    """What a person sees while a job runs: shards, rows, rate, time left, rejects by reason."""

    name: str
    shards: int
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    shards_done: int = 0
    rows: int = 0
    worker_s: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    counted: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    shown: float = 0.0

    def add(self, ref: ShardRef, elapsed_s: float) -> None:
        """Count a shard that ended, and show where the job stands."""
        self.shards_done += 1
        self.rows += ref.ledger.total
        self.worker_s += elapsed_s
        self.ledger = self.ledger + ref.ledger
        self.counted.update(ref.timings)  # type: ignore[arg-type]  # a Counter adds floats too
        if time.monotonic() - self.shown > SHOW_EVERY_S or self.shards_done == self.shards:
            self.shown = time.monotonic()
            left_s = self.elapsed_s / self.shards_done * (self.shards - self.shards_done)
            print(f"{self.name}: {self.shards_done}/{self.shards} shards, {self.rows} rows, {self.rows_per_s:.1f} rows/s, {self._said()}"
                  f"{left_s:.0f} s left; {describe(self.ledger)}", file=sys.stderr, flush=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self.started

    @property
    def rows_per_s(self) -> float:
        """Rows that went in, per second of the job."""
        return self.rows / max(self.elapsed_s, 1e-9)

    def throughput(self) -> str:
        """The job's cost in a few words."""
        if not self.rows:
            return "nothing was pending"
        cost = f", cost {self.cost_per_thousand:.4g} per thousand" if self.cost_per_thousand else ""
        return (f"{self.rows} rows in {self.elapsed_s:.1f} s ({self.rows_per_s:.1f} rows/s; {self._said()}"
                f"{self.worker_s_per_thousand:.1f} worker-seconds per thousand{cost})")

    @property
    def cost_per_thousand(self) -> float:
        """What the workers cost for every thousand images, at the recipe's price of a worker's hour; 0 without a price."""
        return self.workers.cost(self.worker_s_per_thousand)

    @property
    def worker_s_per_thousand(self) -> float:
        """Seconds of one worker for every thousand images that were worked on (rows, where a stage does not count images)."""
        return 1000 * self.worker_s / max(self.counted["images"] or self.rows, 1)

    def rates(self) -> dict[str, float]:
        """What stages counted: images and tokens per second of the job, and the share of their time that models waited for pictures."""
        found = {f"{name}_per_s": self.counted[name] / max(self.elapsed_s, 1e-9) for name in ("images", "tokens") if self.counted[name]}
        if self.counted["wait_s"] and self.worker_s:
            found["wait_share"] = self.counted["wait_s"] / self.worker_s
        return found

    def _said(self) -> str:
        return "".join(f"{value:.3g} {name.replace('_per_s', '/s')}, " for name, value in self.rates().items())
