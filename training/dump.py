"""A step whose loss is not finite, kept so that it can be looked at and replayed (training/replay.py).

    dumps/step-00000002/rank-00000.<attempt>.safetensors   this worker's micro batches, tensor by tensor, its losses, torch's generator
    dumps/step-00000002/rank-00000.<attempt>.json          positions, image ids, captions, timesteps, seeds of its samples
    dumps/step-00000002/weights.<attempt>.safetensors      what was trained, as it was in that step
    dumps/step-00000002/dump.<attempt>.json                created last: what went wrong, configuration, files and their sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from infra.storage import StorageError, Store, read_json, unique_name

if TYPE_CHECKING:
    import torch

    from training.batches import Sample

FOLDER = "dumps"
SHOWN = 8  # choice: ids in the message; the dump has all


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What this worker took into a step: samples, their micro batches, and the loss of each sample, [B]."""

    samples: list[Sample]
    batches: list[dict[str, Any]]
    loss_B: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker says of its share: its files, the samples whose loss is not finite and all of them, and why nothing was written."""

    files: dict[str, str]  # path -> sha256
    bad: list[str]
    ids: list[str]
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of the step. `checkpoint` is the newest one before it, `value` the number that is not finite ("nan", "inf", "-inf")."""

    step: int
    what: str
    value: str
    world: int
    checkpoint: int | None
    stage: str
    run: str
    config: dict[str, Any]


def write_share(store: Store, step: int, rank: int, taken: Taken, weights: Mapping[str, torch.Tensor] | None) -> Worker:
    """This worker's files, and on the first one the weights. Never raises for storage: every worker must be heard."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    micros = []
    for i, batch in enumerate(taken.batches):
        held = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"{i}/{name}": value for name, value in held.items()}
        micros.append({name: value for name, value in batch.items() if name not in held})
    loss_B = taken.loss_B.float().cpu()
    tensors |= {"loss_B": loss_B, "torch_rng_state": torch.get_rng_state()}
    shown = ("position", "source", "image_id", "prompt", "timestep", "noise_seed")
    samples = [{name: getattr(sample, name) for name in shown} for sample in taken.samples]
    text = json.dumps({"samples": samples, "micro_batches": micros}, indent=1).encode()
    named = f"{FOLDER}/step-{step:08d}/rank-{rank:05d}"
    bad = [s.image_id for s, finite in zip(taken.samples, torch.isfinite(loss_B).tolist(), strict=True) if not finite]
    ids = [sample.image_id for sample in taken.samples]
    try:
        files = {**_put(store, named, ".safetensors", _bytes(tensors)), **_put(store, named, ".json", text)}
        if weights is not None:
            files |= _put(store, f"{FOLDER}/step-{step:08d}/weights", ".safetensors", _bytes(weights))
    except StorageError as error:
        return Worker(files={}, bad=bad, ids=ids, trouble=str(error))
    return Worker(files=files, bad=bad, ids=ids)


def write_facts(store: Store, facts: Facts, workers: list[Worker]) -> str:
    """Make the dump exist, once every worker has written. Returns its key, or why there is none."""
    trouble = next((one.trouble for one in workers if one.trouble), None)
    key = unique_name(f"{FOLDER}/step-{facts.step:08d}/dump", ".json")
    files = {path: digest for one in workers for path, digest in one.files.items()}
    try:
        if trouble is None:
            store.put(key, json.dumps({**asdict(facts), "files": files}, indent=1).encode())
            return f"to replay the step: python training/replay.py --input {store.url} --dump {key}"
    except StorageError as error:
        trouble = str(error)
    return f"the step could not be dumped ({trouble})"


def guilty(workers: list[Worker]) -> str:
    """The samples whose loss is not finite, or all of them, in words."""
    bad = [name for one in workers for name in one.bad]
    ids = bad or [name for one in workers for name in one.ids]
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{'images whose loss is not finite' if bad else 'images of the step'}: {', '.join(ids[:SHOWN])}{more}"


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A dump as it was read: facts, weights, and for each worker its micro batches and losses [B]."""

    facts: Facts
    weights: dict[str, torch.Tensor]
    shares: list[tuple[list[dict[str, Any]], torch.Tensor]]


def read(store: Store, key: str | None) -> Dump:
    """The dump of this key, or the newest one, every file verified. ValueError if there is none or it was altered."""
    found = sorted(entry.key for entry in store.list(FOLDER) if "/dump." in entry.key)
    if not found or (key is not None and key not in found):
        there = ", ".join(found) or "none"
        raise ValueError(f"{store.url} holds no dump {key or 'at all'}, found: {there}; give the output folder of a training that stopped")
    said = read_json(store, key or found[-1], "give another --dump")
    files = said.pop("files")
    gone = [path for path in sorted(files) if not store.exists(path)]
    if gone:
        raise ValueError(f"{store.url}/{gone[0]} is missing, though the dump names it: restore it from a copy, or give another --dump")
    facts, weights, shares = Facts(**said), {}, {}
    for path, digest in sorted(files.items()):
        data = store.read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{store.url}/{path} is not what the dump says: the file was altered, nothing can be learned from it")
        if not path.endswith(".safetensors"):
            continue
        if path.rsplit("/", 1)[1].startswith("weights."):
            weights = _tensors(data)
        else:
            rank = path.rsplit("/", 1)[1].split(".")[0]
            other = next(name for name in files if name.rsplit("/", 1)[1].startswith(f"{rank}.") and name.endswith(".json"))
            shares[rank] = _share(_tensors(data), json.loads(store.read(other))["micro_batches"])
    return Dump(facts=facts, weights=weights, shares=[shares[rank] for rank in sorted(shares)])


def _share(tensors: dict[str, torch.Tensor], micros: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], torch.Tensor]:
    batches = []
    for i, rest in enumerate(micros):
        batches.append({name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{i}/")} | rest)
    return batches, tensors["loss_B"]


def _put(store: Store, stem: str, suffix: str, data: bytes) -> dict[str, str]:
    path = unique_name(stem, suffix)
    store.put(path, data)
    return {path: hashlib.sha256(data).hexdigest()}


def _bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)
