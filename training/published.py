"""Versions of published weights: v0001, v0002, … side by side, each complete or absent, and which of them is current."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from infra.storage import Store
from infra.stores import open_store
from infra.tracking import check_tracking, point_model, read_metrics, register_model
from training import checkpoint, record
from training.engines import EMA, WEIGHTS
from training.preflight import check_output

if TYPE_CHECKING:
    import torch

    from training.recipes_publish import PublishConfig

PREFIX = {"encoder": "encoder.", "adaptor": "supir.adaptor."}  # of the parameters in the step modules
CARD, FACTS = "README.md", "card.json"
OFFICIAL = "official.safetensors"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A verified checkpoint, and the run that it belongs to."""

    meta: checkpoint.Meta
    part: str
    tensors: dict[str, torch.Tensor]
    run: record.Record

    @property
    def step(self) -> int:
        return self.meta.step

    @property
    def network(self) -> checkpoint.Network:
        return self.meta.network


def read(config: PublishConfig) -> Found:
    """The checkpoint that the configuration names. ValueError that lists what is kept."""
    store = open_store(config.input)
    kept = checkpoint.steps(store)
    if not kept:
        raise ValueError(f"{store.url} holds no checkpoint: give the output folder of a training as --input")
    step = config.step or kept[-1]
    if step not in kept:
        raise ValueError(f"step {step} is not kept in {store.url}: choose --step from {kept} (checkpoint.keep decides how many stay)")
    try:
        loaded = checkpoint.read(store, step)
    except checkpoint.DamagedCheckpoint as error:
        others = [one for one in kept if one != step]
        raise ValueError(f"step {step} of {store.url} is damaged ({error}): choose --step from {others}, or train on from one") from error
    part = EMA if config.weights == "average" and EMA in loaded.parts else WEIGHTS
    return Found(meta=loaded.meta, part=part, tensors=loaded.parts[part], run=record.load(config.input))


def publish(config: PublishConfig, found: Found, tracking: str | None) -> int:
    """Write the next version, make it current, register it; returns its number."""
    store, name = open_store(config.output), model_name(config, found)
    check_output(config.output)
    check_tracking(tracking)
    files = weight_files(found, config.dtype)
    number = 1 + max(versions(store), default=0)
    facts = describe(config, found, files, tracking) | {"version": number, "model": name}
    card = {CARD: card_text(facts).encode(), FACTS: json.dumps(facts, indent=1, sort_keys=True).encode()}
    for key, data in [*files.items(), *card.items()]:
        store.put(f"v{number:04d}/{key}", data)
    manifest = {"version": number, "model": name, "files": facts["files"]}
    if not store.create(f"versions/{number:04d}.json", json.dumps(manifest, sort_keys=True).encode()):
        raise ValueError(f"version {number} of {store.url} was published by somebody else meanwhile: run the same command again")
    make_current(store, number)
    address = f"{store.url}/v{number:04d}"
    print(f"published version {number}: {address}/{found.network.trained} and {address}/{OFFICIAL}")
    if tracking and found.meta.tracker_run_id not in ("", "local"):
        tags = {"published": str(number), "address": address, "step": str(found.step), "data": found.run.digest, "weights": found.part}
        known = register_model(tracking, name, found.meta.tracker_run_id, f"published/v{number:04d}", tags, card)
        point_model(tracking, name, "published", str(number))
        print(f"registered as {name!r} version {known} of run {found.meta.tracker_run_id}")
    return number


def go_back(config: PublishConfig, tracking: str | None) -> None:
    """Make an earlier version current. ValueError that lists the versions."""
    store, number = earlier(config)
    name = json.loads(store.read(f"versions/{number:04d}.json"))["model"]
    if tracking:
        point_model(tracking, name, "published", str(number))
    make_current(store, number)
    print(f"version {number} is current: {store.url}/v{number:04d}")


def earlier(config: PublishConfig) -> tuple[Store, int]:
    """Where the versions are, and the one to go back to. ValueError that lists them if it is none."""
    store, number = open_store(config.output), config.back_to
    there = versions(store)
    if not there:
        raise ValueError(f"{store.url} holds no version at all: give the --output that publish was given before")
    if number not in there:
        raise ValueError(f"{store.url} has no version {number}: choose --back-to from {there}")
    return store, number


def versions(store: Store) -> list[int]:
    """Numbers of the versions that are complete."""
    names = (Path(entry.key) for entry in store.list("versions"))
    return sorted(int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdigit())


def current(store: Store) -> int:
    """The version that is current; 0: none is."""
    entries = sorted(entry.key for entry in store.list("current") if entry.key.endswith(".json"))
    return int(json.loads(store.read(entries[-1]))["version"]) if entries else 0


def make_current(store: Store, number: int) -> None:
    """One more change of what is current."""
    turn = sum(1 for entry in store.list("current") if entry.key.endswith(".json"))
    while not store.create(f"current/{turn:06d}.json", json.dumps({"version": number, "turn": turn}).encode()):
        turn += 1


def weight_files(found: Found, dtype: str) -> dict[str, bytes]:
    """Our folder and the file in the official layout, by name."""
    import torch

    from supir_model.official import empty_adaptor, official_tensors, save_official
    from supir_model.presets import get_network
    from supir_model.weights import adaptor_files, encoder_files

    trained, preset = found.network.trained, get_network(found.network.preset)
    tensors = {name.removeprefix(PREFIX[trained]): tensor for name, tensor in found.tensors.items()}
    if trained == "adaptor":
        adaptor = empty_adaptor(preset)
        adaptor.load_state_dict(tensors, assign=True)
        ours, modules = adaptor_files(adaptor), {"adaptor": adaptor}
    else:
        with torch.device("meta"):
            encoder = preset.build_vae().encoder
        encoder.load_state_dict(tensors, assign=True)
        ours, modules = encoder_files(encoder, preset.name), {"encoder": encoder}
    precision = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    with TemporaryDirectory() as folder:
        path = Path(folder, OFFICIAL)
        save_official(path, official_tensors(**modules, dtype=precision))  # type: ignore[arg-type]
        return {**{f"{trained}/{name}": data for name, data in ours.items()}, OFFICIAL: path.read_bytes()}


def model_name(config: PublishConfig, found: Found) -> str:
    """Of the registered model."""
    return config.model or f"supir-{found.network.trained}-{found.network.preset}"


def describe(config: PublishConfig, found: Found, files: dict[str, bytes], tracking: str | None) -> dict[str, Any]:
    """What the card says, as data."""
    run_id = found.meta.tracker_run_id
    curves = read_metrics(tracking, run_id) if tracking and run_id not in ("", "local") else {}
    return {
        "trained": found.network.trained,
        "network": found.network.preset,
        "step": found.step,
        "images": found.meta.next_position,
        "weights": found.part,
        "licence": config.licence,
        "run": {"address": open_store(config.input).url, "digest": found.run.digest, "tracker_run_id": run_id},
        "data": [{"name": one.source.name, "address": one.source.url, "weight": one.source.weight, "commits": one.tables}
                 for one in found.run.sources],
        "configuration": found.run.config,
        "metrics": {name: points[-1][1] for name, points in curves.items() if points},
        "files": {name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for name, data in files.items()},
    }  # fmt: skip


def card_text(facts: dict[str, Any]) -> str:
    """The card, for people; `card.json` has the same for programs."""
    run, config = facts["run"], facts["configuration"]
    data = "\n".join(f"| {one['name']} | {one['address']} | {one['weight']:.4g} | {sum(map(len, one['commits'].values()))} |"
                     for one in facts["data"])  # fmt: skip
    metrics = "\n".join(f"| {name} | {value:.5g} |" for name, value in sorted(facts["metrics"].items())) or "| none was tracked | |"
    files = "\n".join(f"| {name} | {one['size_bytes']:,} | `{one['sha256']}` |" for name, one in sorted(facts["files"].items()))
    return f"""# {facts["model"]}, version {facts["version"]}

The {facts["trained"]} of network `{facts["network"]}` after {facts["step"]:,} steps, {facts["images"]:,} images; {
    "moving average of the weights" if facts["weights"] == EMA else "weights of the last update"}.
Licence of the weights: {facts["licence"]}.

Run: {run["address"]}, digest `{run["digest"]}`, MLflow run `{run["tracker_run_id"] or "none"}`. Prior: {config["prior"]}.
Learning rate {config["optimizer"]["lr"]:g}, batch {config["batch"]["global_batch"]}, crops of {config["batch"]["crop_px"]} px, degradation
{config["batch"]["degradation"]}, seed {config["seed"]}. The whole configuration and the commits of the data are in `{FACTS}`.

| data | address | weight | commits |
| --- | --- | --- | --- |
{data}

| metric | last value of the run |
| --- | --- |
{metrics}

| file | bytes | sha256 |
| --- | --- | --- |
{files}
"""
