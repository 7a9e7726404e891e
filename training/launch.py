"""Starting the workers, and the only file of training/ that imports ray: Ray Train, or this process alone.

    driver                                  worker (one a GPU, or a CPU core)
    launch(job) --- TorchTrainer ---------> run_worker(job, place)
                                            the loop; checkpoints and metrics go from there to storage and tracker

A worker that dies takes its group with it; Ray Train starts the group again, and the loop continues from the newest
checkpoint. Ray's own checkpoints are not used: ours lie in the run's output folder and can be resumed without Ray.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.stores import open_store
from training import interruption
from training.exchange import Exchange
from training.interruption import Interrupted
from training.job import Job
from training.recipes import LaunchOptions

ROOT = str(Path(__file__).resolve().parents[1])
HEALTH_CHECK_S = "2"  # choice: a dead worker is noticed within seconds; Ray's default is 2 s of polling with longer timeouts
START_TIMEOUT_S = "300"  # choice: images of many GB start slowly; Ray gives up after 60 s


class Stopped(RuntimeError):
    """The training ended for a reason that another attempt would meet again."""


def launch(job: Job) -> None:
    """Train to the end, on the workers that the configuration asks for. Raises Stopped with the reason if it cannot, and Interrupted."""
    if job.config.launch.launcher == "local":
        from training.worker import run_here

        run_here(job)
    else:
        _on_ray(job)


# ---------------------------------------------------------------- Ray


@contextmanager
def connection(options: LaunchOptions) -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS, or a local one of our own that ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ half warns on stderr of what it does itself
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"  # without it ray would join any cluster that somebody started on this machine
    more: dict[str, Any] = {}
    if address == "local":
        more = {"include_dashboard": False, "num_cpus": _cpus(options)}
    ray.init(address=address, runtime_env={"env_vars": _environment()}, log_to_driver=False, logging_level=logging.ERROR, **more)
    try:
        yield
    finally:
        ray.shutdown()


def _cpus(options: LaunchOptions) -> int:
    """Workers and Ray Train's controller must fit, also where there are fewer cores than workers."""
    return max(os.cpu_count() or 1, int(options.workers * options.cpus_per_worker) + 1)


def _environment() -> dict[str, str]:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # under `ray job submit` the working directory is on the path already
        return {}
    return {"PYTHONPATH": os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])}


def check_room(options: LaunchOptions, have: Mapping[str, float]) -> None:
    """Whether Ray has what the workers want. ValueError where nothing can come to it; on a cluster a word, for nodes may join it."""
    wants = {"CPU": options.workers * options.cpus_per_worker, "GPU": options.workers * options.gpus_per_worker}
    lacking = [f"{amount:g} {kind}s and there are {have.get(kind, 0):g}" for kind, amount in wants.items() if amount > have.get(kind, 0)]
    if not lacking:
        return
    told = f"launch.workers={options.workers} want {', '.join(lacking)}"
    cure = "lower launch.workers, launch.gpus_per_worker or launch.cpus_per_worker"
    if not os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"{told} on this machine: {cure}, or set RAY_ADDRESS to a cluster that has them")
    patience_min = (options.restarts + 1) * float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)) / 60
    print(f"{told} in the cluster: waiting for nodes, {patience_min:.0f} minutes at the most; or {cure}", flush=True)


def failures(options: LaunchOptions) -> Any:
    """How often Ray Train may start the workers again: after one has died, and after they could not be started (its default: for ever)."""
    from ray.train import FailureConfig

    limits: dict[str, Any] = {"max_failures": options.restarts, "controller_failure_limit": options.restarts}  # stubs: of Ray Train 1
    return FailureConfig(**limits)


def _on_ray(job: Job) -> None:
    with connection(job.config.launch):
        import ray
        from ray.train import RunConfig as RayRun
        from ray.train import ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        options = job.config.launch
        check_room(options, ray.cluster_resources())
        resources = {"CPU": options.cpus_per_worker, **({"GPU": options.gpus_per_worker} if options.gpus_per_worker else {})}
        exchange: Any = ray.remote(Exchange).options(**_beside_this_process()).remote()
        trainer = TorchTrainer(
            _worker_main,
            train_loop_config={"job": job, "exchange": exchange},
            torch_config=_listening(TorchConfig)(backend="nccl" if options.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=options.workers, use_gpu=bool(options.gpus_per_worker), resources_per_worker=resources
            ),
            run_config=RayRun(name=job.attempt, failure_config=failures(options), **_ray_storage(job)),
        )
        with _attending(exchange), interruption.listening():
            trouble = _fit(trainer, job)
        reason = ray.get(exchange.reason.remote())
        ray.kill(exchange)
        if reason is not None:
            said, interrupted = reason
            raise (Interrupted if interrupted else Stopped)(said)
        if trouble is not None:
            raise trouble


def _beside_this_process() -> dict[str, Any]:
    """On the node of the command: any other node may leave."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


def _listening(torch_config: Any) -> Any:
    """Ray's configuration of process groups, which also makes each worker take note of a SIGTERM."""

    class Backend(torch_config().backend_cls):  # type: ignore[misc]
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(interruption.listen)  # in the actor's main thread, as Python wants it

    class Config(torch_config):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config


def _fit(trainer: Any, job: Job) -> Stopped | None:
    """Run to the end; what is wrong if Ray gave up."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return Stopped(
            f"the workers failed, or could not be started, more often than launch.restarts={job.config.launch.restarts} allows; the last "
            f"failure: {error}. The newest checkpoint stands: run the same command again to continue"
        )
    return None


def _ray_storage(job: Job) -> dict[str, Any]:
    """Where Ray Train keeps its own small files: beside the run, reachable from every node."""
    url = open_store(job.config.output).child("ray").url
    if not url.startswith("s3://"):
        return {"storage_path": url}
    import s3fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": url.removeprefix("s3://"), "storage_filesystem": PyFileSystem(FSSpecHandler(s3fs.S3FileSystem()))}


@contextmanager
def _attending(exchange: Any) -> Iterator[None]:
    """What workers say appears here, unadorned; a SIGTERM to this process becomes an order to them."""
    import ray

    done = threading.Event()

    def attend() -> None:
        ordered = False
        while True:
            last = done.wait(0.3)
            if interruption.ASKED.is_set() and not ordered:
                ordered = True
                print("asked to end (SIGTERM): the workers save the step that they are in; again, and it ends at once", flush=True)
                exchange.order.remote()
            for line in ray.get(exchange.lines.remote()):
                print(line, flush=True)
            if last:
                return

    thread = threading.Thread(target=attend, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def _obey(exchange: Any) -> None:
    """On the first worker, in a thread: wait for the order."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(exchange.ordered.remote())
    except RayError:  # the command is gone, and its order with it
        return
    interruption.ASKED.set()


def _worker_main(told: dict[str, Any]) -> None:
    """On every worker of the group, inside its process group."""
    import ray.train.torch
    from ray.train import get_context

    from training.checkpoint import NotSaved
    from training.loop import NotFinite, Place
    from training.worker import run_worker

    job, exchange = told["job"], told["exchange"]
    if ray.get(exchange.reason.remote()) is not None:
        return  # started again after a worker stopped for good: there is nothing to try
    context = get_context()
    place = Place(rank=context.get_world_rank(), world=context.get_world_size(), device=ray.train.torch.get_device())

    def say(line: str) -> None:
        if place.rank == 0:
            exchange.say.remote(line)

    def stop(reason: Exception) -> None:
        if isinstance(reason, NotFinite) and place.rank > 0:
            return  # the first worker knows where the dump is
        ray.get(exchange.stop.remote(str(reason), isinstance(reason, Interrupted)))

    if place.rank == 0:
        threading.Thread(target=_obey, args=(exchange,), name="orders", daemon=True).start()
    try:
        run_worker(job, place, say)
    except (NotFinite, Interrupted) as error:  # every worker sees the same number, so all end here, and Ray has nothing to start again
        stop(error)
    except (ValueError, NotSaved) as error:  # perhaps this worker's alone: raising takes the others down, and `reason` ends the next group
        stop(error)
        raise
