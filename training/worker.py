"""One worker of a training: put data, stage, engine and tracker together, and run the loop. Knows nothing of Ray."""

from __future__ import annotations

import json
import os
import platform

import pyarrow as pa

from infra.config import hash_config, to_dict
from infra.revision import code_version
from infra.storage import Store, read_json
from infra.stores import open_store
from infra.tracking import Tracker, open_tracker
from training import record, sequence
from training.batches import Batches
from training.checkpoint import NotSaved
from training.engines import build_engine
from training.interruption import CLOSE_S, Interrupted, listening
from training.job import Job
from training.loop import Loop, Place, Say
from training.recipes import RunConfig, batch_arithmetic
from training.sequence import key
from training.utilisation import full_images_per_s

TRACKER = "tracker.json"


def run_here(job: Job) -> None:
    """This process alone: no Ray, no process group."""
    import torch

    device = torch.device("cuda:0" if job.config.launch.gpus_per_worker else "cpu")  # of those that CUDA_VISIBLE_DEVICES leaves
    with listening():
        run_worker(job, Place(rank=0, world=1, device=device), lambda line: print(line, flush=True))


def run_worker(job: Job, place: Place, say: Say) -> None:
    """Train on this worker to the end, or raise what stops it."""
    import torch

    from training import checks
    from training.computing import check_compiled
    from training.stages import build_stage

    config, store = job.config, open_store(job.config.output)
    _settle(config, store, place)
    cut = batch_arithmetic(config.batch, place.world)
    run = record.load(config.output)
    batches = Batches(record.present(run.sources), seed=config.seed, options=config.batch, world=place.world)
    fixed = batches.fixed(config.validation.images) if place.rank == 0 else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "initial weights") >> 1)  # the same first weights at every start, on every worker
        stage = build_stage(config, fixed, place.device)
    first = sequence.positions(0, global_batch=config.batch.global_batch, world=place.world, rank=place.rank)[: cut.micro_batch]
    checks.check_batch(stage, lambda: [batches.sample(position) for position in first], place)
    if config.compute.compile:
        check_compiled(stage.step, stage.collate([batches.sample(position) for position in first]), bf16=config.precision == "bf16")
    engine = build_engine(
        stage.step,
        options=config.engine,
        optimizer=config.optimizer,
        global_batch=config.batch.global_batch,
        micro_batch=cut.micro_batch,
        accumulation=cut.accumulation,
        device=place.device,
    )
    tracker = _tracker(job, store, config, run) if place.rank == 0 else None
    loop = Loop(
        config=config,
        cut=cut,
        place=place,
        stage=stage,
        engine=engine,
        sample=batches.sample,
        store=store,
        run=run.digest,
        tracker=tracker,
        say=say,
        full_images_per_s=full_images_per_s(config, place) if place.rank == 0 else None,
    )
    try:
        loop.train()
    except (ArithmeticError, NotSaved):
        if tracker is not None:
            tracker.close("FAILED")
        raise
    except Interrupted:
        if tracker is not None:
            tracker.close("KILLED", CLOSE_S)
        raise
    if tracker is not None:
        tracker.close("FINISHED")
        record.finish(store, config.steps, tracker.run_id)


def _settle(config: RunConfig, store: Store, place: Place) -> None:
    """Take the device that Ray has chosen, and check what does not need data."""
    import torch

    from training import checks
    from training.computing import check_compiler

    pa.set_memory_pool(pa.system_memory_pool())  # measured (docs/results/read.md): Arrow's own clears 0.5 ms of memory an image
    os.environ["LOCAL_RANK"] = str(place.device.index or 0)  # DeepSpeed takes the device from it
    checks.check_device(config, place)
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)  # NCCL's collectives of objects use the current one
    else:
        torch.set_num_threads(config.launch.threads)
    checks.check_group(place)
    if config.compute.compile:
        check_compiler(place.device)
    checks.check_storage(store, place)


def _tracker(job: Job, store: Store, config: RunConfig, run: record.Record) -> Tracker:
    """The run in the tracker: the same one over every restart."""
    known = read_json(store, TRACKER, "delete it, and a new run is begun in MLflow") if store.exists(TRACKER) else {}
    run_id = known.get("run_id") if known.get("uri") and job.tracking else None  # the same store may stand behind another address
    name = type(config).__name__.removesuffix("Config").lower()
    tracker = open_tracker(job.tracking, f"train_{name}", f"{name}-{run.digest[:6]}", run_id)
    if tracker.run_id != run_id:
        store.delete(TRACKER)
        store.create(TRACKER, json.dumps({"uri": job.tracking, "run_id": tracker.run_id}).encode())  # whole or absent
        tracker.config(to_dict(config))
        tracker.tags({"run": run.digest, "workers": str(config.launch.workers), "engine": config.engine.kind})
    data = hash_config([one.tables for one in run.sources])  # commits, which name their content
    tracker.tags({f"weights.{name}": found for name, found in run.weights.items()})
    cluster = os.environ.get("RAY_ADDRESS") or platform.node()
    tracker.tags({"data": data, "code": code_version(), "cluster": cluster})  # of the newest start
    return tracker
