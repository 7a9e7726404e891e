"""Before the first step: what can be known about a run, checked and printed. `--dry-run` stops here."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infra import machine
from infra.config import RunOptions
from infra.dataset import Dataset
from infra.storage import NotFound, StorageError
from infra.stores import open_store
from training import record, sequence
from training.batches import in_memory
from training.folders import find
from training.recipes import AdaptorConfig, Arithmetic, EncoderConfig, RunConfig, batch_arithmetic

GIB = 2**30
LANES = (32, 16, 8, 4, 2, 1)
SIZED_SHARDS = 4  # choice: shards are about equal
PORTS, PORTS_A_WORKER = 32, 8  # choice: with room to spare for a local Ray and its workers
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do; `warnings` are what must be there before it can."""

    lines: list[str]
    warnings: list[str]
    found: record.Record | None


def make_plan(config: RunConfig, *, memory: bool) -> Plan:
    """Check everything that can be checked without starting. Raises ValueError or StorageError that teach.

    `memory` counts the networks too, which takes seconds.
    """
    from supir_model.presets import get_network

    world = 1 if config.launch.launcher == "local" else config.launch.workers
    cut, preset = batch_arithmetic(config.batch, world), get_network(config.network)
    _check_sizes(config, preset.vae_factor)
    _check_output_apart(config)
    shares = sequence.shares([source.weight for source in config.sources])
    warnings = _missing_weights(config)
    found, data_lines = _data(config, warnings)
    mixture = ", ".join(f"{s.name} {share / sequence.BLOCK_TURNS:.1%}" for s, share in zip(config.sources, shares, strict=True))
    lines = [
        f"steps        {config.steps} of {config.batch.global_batch} images = {config.steps * config.batch.global_batch:,} images",
        _batch_line(config, cut),
        f"mixture      {mixture}; {config.batch.lanes} lanes, {config.batch.lanes // world} a worker",
        *data_lines,
        *_cores(config, world),
        *(_shards_in_memory(config, found, world) if found else []),
        *(_memory(config, cut) if memory else []),
    ]
    return Plan(lines=lines, warnings=warnings, found=found)


def _batch_line(config: RunConfig, cut: Arithmetic) -> str:
    engine = config.engine.kind if config.engine.kind == "plain" else f"ZeRO-{config.engine.zero_stage}"
    passes = f"micro batch {cut.micro_batch} x {cut.accumulation} passes x {cut.world} workers"
    return f"batch        {config.batch.global_batch} = {passes}, {engine}, {config.precision}"


def _cores(config: RunConfig, world: int) -> list[str]:
    """A word where this machine's own workers would wait for each other. A cluster is not looked at."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if os.environ.get("RAY_ADDRESS") or config.launch.gpus_per_worker or world * config.launch.threads <= cores:
        return []
    return [f"cores        {cores} for {world} workers of {config.launch.threads} threads: they wait for each other, fewer are as fast"]


def _check_sizes(config: RunConfig, vae_factor: int) -> None:
    crop, side, multiple = config.batch.crop_px, config.batch.short_side_px, vae_factor * 4
    if crop < multiple or crop % multiple:
        raise ValueError(f"batch.crop_px is {crop}, expected a multiple of {multiple} (autoencoder {vae_factor}, UNet 4)")
    if side is not None and side < crop:
        raise ValueError(f"batch.short_side_px is {side}, smaller than batch.crop_px ({crop}): raise it, or set it to none")
    if isinstance(config, EncoderConfig) and config.perceptual_weight and config.perceptual is None:
        raise ValueError(
            f"perceptual_weight is {config.perceptual_weight:g} and perceptual is not given: pass --set perceptual=FILE with the weights "
            "of VGG-16 (supir_model/perceptual.py), or --set perceptual_weight=0"
        )
    from supir_model.degradation.presets import parse_mixture  # late: its package imports torch

    parse_mixture(config.batch.degradation)


def _check_output_apart(config: RunConfig) -> None:
    """ValueError if the run's files would lie among data or weights that it reads: both are what was committed, and nothing beside it."""
    output = open_store(config.output).url
    for what, url in _read_addresses(config):
        there = open_store(find(url)).url
        if f"{output}/".startswith(f"{there}/"):
            raise ValueError(f"--output {output} lies in {what} ({there}), which this run reads: choose a folder beside it")


def _read_addresses(config: RunConfig) -> list[tuple[str, str]]:
    """What the run reads, and where it lies."""
    found = [(f"the dataset of {source.name}", source.url) for source in config.sources]
    encoder = config.encoder if isinstance(config, AdaptorConfig) else None
    return [*found, ("the prior", config.prior), *([("the encoder", encoder)] if encoder else [])]


def _missing_weights(config: RunConfig) -> list[str]:
    """Folders of weights that are not on this disk (an address in a bucket is looked at when the run starts)."""
    wanted = [("prior", config.prior, "SDXL base in diffusers' layout, or a folder that training/train_prior.py writes")]
    if isinstance(config, AdaptorConfig) and config.encoder:
        wanted.append(("encoder", config.encoder, "the encoder/ folder that training/train_encoder.py writes"))
    if isinstance(config, EncoderConfig) and config.perceptual_weight and config.perceptual:
        wanted.append(("perceptual", config.perceptual, "a .safetensors file of VGG-16 (supir_model/perceptual.py)"))
    return [
        f"{name}: {url} is not there yet; needed: {what}" for name, url, what in wanted if "://" not in url and not Path(find(url)).exists()
    ]


def _data(config: RunConfig, warnings: list[str]) -> tuple[record.Record | None, list[str]]:
    remote = [url for _, url in [*_read_addresses(config), ("", config.output)] if url.startswith("s3://")]
    if remote and not any(os.environ.get(name) for name in CREDENTIALS):
        warnings.append(f"credentials: set AWS_ACCESS_KEY_ID or AWS_PROFILE; not looked at without: {', '.join(remote)}")
        if any(source.url in remote for source in config.sources):
            return None, []
    found = record.survey(config, captions=isinstance(config, AdaptorConfig))
    lines = []
    for one in found.sources:
        shards = ", ".join(f"{table} {len(commits)} shards" for table, commits in one.tables.items())
        lines.append(f"data         {one.source.name}: {one.source.url}, {shards}")
    return found, lines


def _shards_in_memory(config: RunConfig, found: record.Record, world: int) -> list[str]:
    """How much of the corpus workers hold to shuffle; ValueError if this machine has not so much. A cluster is not looked at."""
    batch = config.batch
    wanted = in_memory(batch, world)
    worker_bytes = sum(min(wanted, len(one.shards)) * _shard_bytes(one) for one in found.sources)
    there = None if os.environ.get("RAY_ADDRESS") else machine.available_bytes()
    if there is not None and worker_bytes * world > there:
        fit = next((n for n in LANES if n % world == 0 and worker_bytes * world * n / batch.lanes <= there), None)
        cure = f"--set batch.lanes={fit}" if fit else "--set batch.window_shards=1"
        raise ValueError(
            f"{world} workers would hold up to {worker_bytes * world / GIB:.1f} GiB of shards ({batch.lanes} lanes, windows of "
            f"{batch.window_shards} shards), and {there / GIB:.1f} GiB are available: {cure}, before the run begins: the order of "
            "samples follows from it"
        )
    return [f"reading      up to {worker_bytes / GIB:.2f} GiB of shards in memory a worker"]


def _shard_bytes(one: record.Tables) -> float:
    """The mean size of some shards of images."""
    dataset, commits = Dataset(one.source.url), one.tables["images"]
    refs = dataset.load_commits([commits[shard] for shard in one.shards[:SIZED_SHARDS] if shard in commits])
    try:
        return sum(dataset.store.size(ref.path) for ref in refs) / max(1, len(refs))
    except NotFound as error:
        raise NotFound(f"{error}, though a commit names it: restore it from a copy, or delete that commit and run ingest again") from error


def _memory(config: RunConfig, cut: Arithmetic) -> list[str]:
    from training.memory import estimate, peak

    parts = estimate(config, cut)
    together = peak(parts, config, cut)
    unit, name = (2**30, "GiB") if together > 2**30 else (2**20, "MiB")
    shown = ", ".join(f"{part} {size / unit:.1f}" for part, size in parts.items())
    return [f"memory       {together / unit:.1f} {name} a worker: {shown} (counted, without workspace)"]


def show(plan: Plan, name: str, options: RunOptions) -> None:
    """Print the plan."""
    print(f"{name}: plan of recipe {options.recipe}")
    for line in plan.lines:
        print(f"  {line}")
    for warning in plan.warnings:
        print(f"  missing      {warning}")


def refuse_missing(plan: Plan) -> record.Record:
    """What a real start needs: ValueError that lists everything that is missing."""
    if plan.warnings or plan.found is None:
        raise ValueError("cannot start: " + "; ".join(plan.warnings))
    return plan.found


def check_ports(config: RunConfig) -> None:
    """ValueError if a Ray of this command's own would not find the ports that its processes listen on."""
    if config.launch.launcher != "ray" or os.environ.get("RAY_ADDRESS"):
        return
    wanted = PORTS + PORTS_A_WORKER * config.launch.workers
    with ExitStack() as held:
        for free in range(wanted):
            try:
                held.enter_context(socket.socket()).bind(("", 0))
            except OSError as error:
                raise ValueError(
                    f"no free port: {free} could be taken of the {wanted} that Ray needs on this machine ({error.strerror}). End what "
                    "holds them (ss -tlnp), widen net.ipv4.ip_local_port_range, or train without Ray: --set launch.launcher=local"
                ) from error


def check_output(url: str) -> None:
    """The output folder must be writable before hours are spent. Raises StorageError."""
    store = open_store(url)
    store.check()
    probe = f".probe-{os.getpid()}"
    try:
        store.delete(probe)
        store.put(probe, b"")
    except StorageError as error:
        raise StorageError(f"{store.url} cannot be written ({error}): choose another --output") from error
    store.delete(probe)
