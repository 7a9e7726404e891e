"""The only file of pipelines/ that imports ray: connect to a cluster, and map tasks over a pool of actors.

On a cluster Ray Data holds the pool: nodes may come and go, and the pool grows with them. On this machine alone there is nothing to
scale, and Ray's actors do without Ray Data, whose planner and three helper processes take five seconds of two cores before the first
shard. Both restart a lost actor and give it its shard again.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.dataset import Dataset, ShardRef
from pipelines.runtime.calibrate import Calibration, calibrate
from pipelines.runtime.local_start import quick_start, without_chatter
from pipelines.runtime.plan import ShardTask
from pipelines.runtime.stage import Overlapping, Stage
from pipelines.runtime.worker import ShardReport, ShardWorker

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = str(Path(__file__).resolve().parents[2])
LOCAL = "local"
CONNECT_S = 10  # choice: a cluster that takes longer to accept a connection is taken for absent
ROOM_S = 1800  # choice: a cloud brings a GPU node in 5 to 15 minutes
# measured: decode loops run up to 1.5 times faster
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_TOP_PAD_": "67108864"}


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The actor pool: how many workers (0: as many as fit, autoscaled), and what each one takes.

    `price_per_hour` is that of one worker with all it takes, in any currency; 0: cost is not told.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    price_per_hour: float = 0.0

    def cost(self, worker_s: float) -> float:
        """What so many seconds of one worker cost."""
        return worker_s / 3600 * self.price_per_hour


class WorkersLost(ValueError):
    """Ray gave up: workers died too often, or could not be placed."""


class ShardActor:
    """What Ray calls: one worker, one task in, one report out, as JSON, so that no image enters the object store."""

    def __init__(self, stage: Stage, source_url: str, output_url: str) -> None:
        self.worker = ShardWorker(stage, Dataset(source_url), Dataset(output_url))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        report = self.worker.run(task_from_json(row["task"]))
        return {"report": json.dumps(asdict(report))}


def task_to_json(task: ShardTask) -> str:
    """A task as text."""
    return json.dumps(asdict(task))


def task_from_json(text: str) -> ShardTask:
    """The inverse of `task_to_json`."""
    data = json.loads(text)
    inputs = {table: ShardRef.from_json(ref) for table, ref in data["inputs"].items()}
    return ShardTask(**{**data, "inputs": inputs})


def _report_from_json(text: str) -> ShardReport:
    data = json.loads(text)
    return ShardReport(**{**data, "ref": ShardRef.from_json(data["ref"]) if data["ref"] else None})


_SHARED: ContextVar[bool] = ContextVar("shared_cluster", default=False)


@contextmanager
def shared_cluster() -> Iterator[None]:
    """The stages of a job inside it share one connection, which is made when the first of them has work."""
    before = _connected()
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)
        if _connected() and not before:
            sys.modules["ray"].shutdown()


def _connected() -> bool:
    """Whether ray is in use. A job without pending work does not import it: that takes seconds."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def connection() -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS, or to a local one that ends with it. Nested uses share the connection."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ half warns on stderr of what it does itself
    address = _address()
    try:
        _check_answers(address)
        with without_chatter():
            if address == LOCAL:  # workers inherit this process's variables: nothing has to make an environment for them
                with quick_start(ray, _variables()):
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            else:  # credentials come from the nodes
                ray.init(address=address, runtime_env={"env_vars": _variables()}, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the Ray cluster at RAY_ADDRESS={address} ({error}): start it, correct the address (head:6379), "
                         "or unset RAY_ADDRESS to run on this machine alone") from error
    try:
        yield
    finally:
        if not _SHARED.get():
            ray.shutdown()


def _address() -> str:
    """Where the cluster is. Without RAY_ADDRESS ray would join any cluster that somebody started on this machine."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def _variables() -> dict[str, str]:
    """What workers need in their environment."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # under `ray job submit` the working directory is on the path already
        return dict(ALLOCATOR)
    return ALLOCATOR | {"PYTHONPATH": os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _check_answers(address: str) -> None:
    """Raise OSError if nobody listens at host:port. Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


def check_room(options: WorkerOptions) -> None:
    """Raise ValueError if one worker asks for more than this machine has; without this Ray would wait for ever.

    A cluster may grow by its autoscaler, so there the lack is told and waited for, half an hour at most.
    """
    import ray

    have = ray.cluster_resources()
    wanted = {"CPU": options.cpus, "GPU": options.gpus}
    lacking = [f"{amount:g} {kind} (found {have.get(kind, 0):g})" for kind, amount in wanted.items() if amount > have.get(kind, 0)]
    if lacking and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"a worker asks for {' and '.join(lacking)} on this machine: set workers.cpus or workers.gpus to what it has, "
                         "choose another recipe, or set RAY_ADDRESS to a cluster")
    if lacking:
        print(f"a worker asks for {' and '.join(lacking)}: waiting for the cluster to bring it", file=sys.stderr, flush=True)
        _wait_for_room(options, " and ".join(lacking))


def _wait_for_room(options: WorkerOptions, lacking: str) -> None:
    """Ask for a worker's place, so that the cluster grows. Raises ValueError when none comes."""
    import ray
    import ray.exceptions

    ask: Any = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus)(_nothing)
    place = ask.remote()
    try:
        ray.get(place, timeout=ROOM_S)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(place)
        raise ValueError(f"no node of the cluster came in {ROOM_S / 60:g} minutes that has what a worker asks for, {lacking}: add such "
                         "nodes, set workers.cpus or workers.gpus to what there is, or choose another recipe") from error


def _nothing() -> None:
    """What a place is asked for with."""


def calibrate_on_worker(stage: Stage, source: Dataset, task: ShardTask, rows: int, options: WorkerOptions) -> tuple[Calibration, int]:
    """(what one worker took for some rows, how many workers the cluster holds now), on the cluster that the job will use.

    Raises ValueError with the worker's own words if it could not be set up.
    """
    import ray
    import ray.exceptions

    with connection():
        check_room(options)
        have = ray.cluster_resources()
        print(f"cluster: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs on {len(ray.nodes())} nodes", flush=True)
        remote = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)(calibrate)
        try:
            took = Calibration(**ray.get(remote.remote(stage, source.store.url, task, rows)))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ValueError(f"{stage.name}: the rows tried for the estimate failed ({type(cause).__name__}): {cause}") from error
        return took, options.workers or _places(options)


def _places(options: WorkerOptions) -> int:
    """How many workers the cluster holds now; at least one."""
    import ray

    have = ray.cluster_resources()
    fit = [int(have.get(kind, 0) // amount) for kind, amount in (("CPU", options.cpus), ("GPU", options.gpus)) if amount]
    return max(1, min(fit, default=1))


def run_tasks(stage: Stage, source: Dataset, output: Dataset, tasks: list[ShardTask], options: WorkerOptions) -> Iterator[ShardReport]:
    """Do the tasks on a pool of actors; reports come as shards end, in any order. A lost actor costs its shard, which is done again.

    Raises WorkersLost when Ray gave up on a worker, and whatever a bug of ours raised there.
    """
    import ray.exceptions

    with connection():
        check_room(options)
        pool = _actors if _address() == LOCAL else _ray_data
        try:
            for report in pool(stage, source, output, tasks, options):
                yield _report_from_json(report)
        except ray.exceptions.RayTaskError:
            raise  # a bug of ours: its traceback is what helps
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:500]
            raise WorkersLost(f"{stage.name}: Ray gave up on a worker ({type(error).__name__}: {reason}). What was committed stays: run "
                              "the same command again, with more memory or a smaller batch if it was killed for memory") from error


def _actors(stage: Stage, source: Dataset, output: Dataset, tasks: list[ShardTask], options: WorkerOptions) -> Iterator[str]:
    """The pool on this machine: as many actors as are asked for and fit."""
    import ray
    from ray.util import ActorPool

    hands = _shards_in_hand(stage)
    remote: Any = ray.remote  # its annotation does not know `max_concurrency`
    kind = remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=hands)(ShardActor)
    count = min(options.workers or len(tasks), len(tasks), _places(options))
    actors = [kind.remote(stage, source.store.url, output.store.url) for _ in range(count)]
    try:
        pool = ActorPool(actors * hands)
        for answer in pool.map_unordered(lambda actor, task: actor.__call__.remote({"task": task_to_json(task)}), tasks):
            yield answer["report"]
    finally:
        for actor in actors:  # the next stage needs their places
            ray.kill(actor)


def _shards_in_hand(stage: Stage) -> int:
    return stage.shards_in_hand if isinstance(stage, Overlapping) else 1


def _ray_data(stage: Stage, source: Dataset, output: Dataset, tasks: list[ShardTask], options: WorkerOptions) -> Iterator[str]:
    """The pool on a cluster."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    hands = _shards_in_hand(stage)
    pool = ray.data.ActorPoolStrategy(min_size=min(options.workers, len(tasks)) or 1, max_size=options.workers or len(tasks),
                                      max_concurrent_calls_per_actor=hands, enable_true_multi_threading=hands > 1)
    items = ray.data.from_items([{"task": task_to_json(task)} for task in tasks], override_num_blocks=len(tasks))
    actor: Any = ShardActor  # Ray's annotation knows functions only
    done = items.map(actor, fn_constructor_args=(stage, source.store.url, output.store.url), compute=pool,
                     num_cpus=options.cpus, num_gpus=options.gpus)
    for row in done.iter_rows():
        yield row["report"]
