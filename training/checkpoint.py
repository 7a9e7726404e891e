"""Checkpoints of our own: a training state by parameter name, readable on any number of workers and by either engine.

    checkpoints/files/step-00000100.<attempt>.<part>.safetensors   fp32 tensors: weights, exp_avg, exp_avg_sq, perhaps ema
    checkpoints/step-00000100.json                                 created last, once; names the files and their sha256
    checkpoints/damaged/…                                          manifests whose files were not what they say

A checkpoint exists when its manifest does: killed at any moment, a save is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from infra.outbox import Point
from infra.storage import NotFound, StorageError, Store, unique_name

if TYPE_CHECKING:
    import torch

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST = re.compile(rf"{FOLDER}/step-(\d{{8,}})\.json")
FAILED_SAVES = 2  # choice: in a row; one may meet a storage that is away for minutes, two are hours of work in danger
Say = Callable[[str], None]


class NotSaved(RuntimeError):
    """Checkpoints could not be written; the message says why, and from where the same command continues."""


class DamagedCheckpoint(StorageError):
    """A checkpoint's files are missing or are not what its manifest says."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a checkpoint's tensors are: `trained` "encoder" or "adaptor" of a network preset, and a hash of names and shapes."""

    trained: str
    preset: str
    shapes: str

    def __str__(self) -> str:
        return f"the {self.trained} of network {self.preset!r} (shapes {self.shapes})"


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What is known of a state beside its tensors. `step` updates are done; `next_position` is the first sample not yet used."""

    step: int
    next_position: int
    optimizer_step: int
    network: Network
    run: str  # digest of the run's configuration and data
    tracker_run_id: str
    world: int  # workers that saved it; for the reader's information only
    unlogged: list[Point] = field(default_factory=list)  # metrics that the tracker had not confirmed; who continues logs them

    @staticmethod
    def from_json(data: dict[str, Any]) -> Meta:
        """The inverse of `dataclasses.asdict`."""
        return Meta(**{**data, "network": Network(**data["network"])})


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A verified state: `parts[part][parameter name]` fp32 CPU tensors."""

    meta: Meta
    parts: dict[str, dict[str, torch.Tensor]]


def network_of(trained: str, preset: str, named: Mapping[str, torch.Tensor]) -> Network:
    """The identity of a module's trainable parameters."""
    shapes = json.dumps(sorted((name, list(tensor.shape)) for name, tensor in named.items()))
    return Network(trained=trained, preset=preset, shapes=hashlib.sha256(shapes.encode()).hexdigest()[:12])


def check_network(found: Network, expected: Network, where: str) -> None:
    """ValueError that names both networks unless they are the same."""
    if found != expected:
        raise ValueError(
            f"{where} holds {found}, this run trains {expected}: choose another --output, or the recipe and network that it was made with"
        )


def manifest_key(step: int) -> str:
    """Where the manifest of a step lives."""
    return f"{FOLDER}/step-{step:08d}.json"


def save(store: Store, meta: Meta, parts: Mapping[str, Mapping[str, torch.Tensor]], keep: int) -> str:
    """Write a state and make it exist; then remove what the policy no longer keeps. Returns the manifest's key.

    Raises StorageError; then the state does not exist, and what was written of it is removed, or swept at the next start.
    """
    files: dict[str, dict[str, Any]] = {}
    name = manifest_key(meta.step)
    try:
        for part, named in parts.items():
            files[part] = {"path": unique_name(f"{FOLDER}/files/step-{meta.step:08d}", f".{part}.safetensors")}
            files[part] |= _put(store, files[part]["path"], named)
        manifest = {"format": FORMAT, "meta": asdict(meta), "files": files}
        ours = store.create(name, json.dumps(manifest, indent=1, sort_keys=True).encode())
    except StorageError:
        with suppress(StorageError):  # a full disk gets its room back; a server that is away keeps them for the sweep
            if not store.exists(name):  # else only the answer to `create` was lost
                _delete(store, files)
        raise
    if not ours:  # an earlier attempt at this step is complete: equal content, its files stay
        _delete(store, files)
    with suppress(StorageError):  # the save is complete; the next one prunes again
        prune(store, keep)
    return name


def _put(store: Store, path: str, named: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    from safetensors.torch import save as to_bytes

    data = to_bytes({name: tensor.contiguous() for name, tensor in named.items()})
    store.put(path, data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def _delete(store: Store, files: Mapping[str, Mapping[str, Any]]) -> None:
    for file in files.values():
        store.delete(file["path"])


def steps(store: Store) -> list[int]:
    """Steps that have a manifest, oldest first."""
    names = (MANIFEST.fullmatch(entry.key) for entry in store.list(FOLDER))
    return sorted(int(name[1]) for name in names if name)


def read_manifest(store: Store, step: int) -> dict[str, Any]:
    """What a checkpoint consists of. Raises DamagedCheckpoint, and ValueError for one that another version of this software wrote."""
    where = f"{store.url}/{manifest_key(step)}"
    try:
        manifest = json.loads(store.read(manifest_key(step)))
        found, _ = manifest["format"], [(file["path"], file["sha256"]) for file in manifest["files"].values()]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{where} is no manifest ({type(error).__name__}: {error})") from error
    if found != FORMAT:
        raise ValueError(
            f"{where} has format {found}, expected {FORMAT}: continue with the version that wrote it, or choose another --output"
        )
    return manifest  # type: ignore[no-any-return]


def read(store: Store, step: int) -> Loaded:
    """The state of one step, every file verified. Raises DamagedCheckpoint."""
    from safetensors.torch import load as from_bytes

    manifest, parts = read_manifest(store, step), {}
    for part, file in manifest["files"].items():
        try:
            data = store.read(file["path"])
        except NotFound as error:
            raise DamagedCheckpoint(f"{file['path']} is missing") from error
        found = hashlib.sha256(data).hexdigest()
        if found != file["sha256"]:
            raise DamagedCheckpoint(f"{file['path']} has sha256 {found[:12]}…, expected {file['sha256'][:12]}…")
        parts[part] = from_bytes(data)
    try:
        return Loaded(meta=Meta.from_json(manifest["meta"]), parts=parts)
    except (KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{store.url}/{manifest_key(step)} says too little of its state ({error})") from error


def newest(store: Store, say: Say) -> Loaded | None:
    """The newest state whose files are what its manifest says; damaged ones after it are set aside, with a word. None: nothing was saved.

    ValueError if there are some and none is whole: whether to begin anew is for a person to say.
    """
    damaged: dict[int, DamagedCheckpoint] = {}
    for step in reversed(steps(store)):
        try:
            loaded = read(store, step)
        except DamagedCheckpoint as error:
            damaged[step] = error
            continue
        for newer, why in damaged.items():
            say(f"checkpoint of step {newer} is damaged ({why}); it is set aside, and the one of step {step} is used")
            _set_aside(store, newer)
        return loaded
    if damaged:
        each = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        raise ValueError(
            f"none of the checkpoints in {store.url} is whole ({each}): restore them from a copy, choose another --output, or delete "
            f"{store.url}/{FOLDER} to begin anew"
        )
    return None


def _set_aside(store: Store, step: int) -> None:
    name = manifest_key(step)
    store.put(unique_name(f"{FOLDER}/damaged/step-{step:08d}", ".json"), store.read(name))
    store.delete(name)


def prune(store: Store, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints: each manifest first, so that what is half removed does not exist."""
    for step in steps(store)[: -max(keep, 1)]:
        try:
            files = read_manifest(store, step)["files"]
        except DamagedCheckpoint:
            files = {}  # nobody names them now: swept at the next start
        store.delete(manifest_key(step))
        _delete(store, files)


def sweep(store: Store) -> int:
    """Remove files that no manifest names (a save that was killed). Only for who is sure to be the only writer; returns how many.

    Damaged manifests must have been set aside (`newest`), for theirs would be among them.
    """
    manifests = [read_manifest(store, step) for step in steps(store)]
    named = {file["path"] for manifest in manifests for file in manifest["files"].values()}
    rubbish = [entry.key for entry in store.list(f"{FOLDER}/files") if entry.key not in named]
    for path in rubbish:
        store.delete(path)
    return len(rubbish)


class Writer:
    """Saves behind the training: one at a time; the state was copied before, so the next step may change it.

    A save that fails is told at once, and the training goes on; FAILED_SAVES of them in a row end it.
    """

    def __init__(self, store: Store, keep: int, say: Say, saved: Callable[[int], None] = lambda step: None) -> None:
        """`saved` is told, in the thread, of each step whose checkpoint exists."""
        self._store = store
        self._keep = keep
        self._say, self._saved = say, saved
        self._failed = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[StorageError | None] | None = None

    def save(
        self, meta: Meta, parts: Mapping[str, Mapping[str, torch.Tensor]], unlogged: Callable[[], list[Point]] = list
    ) -> None:
        """Begin a save; waits for the one before, and raises NotSaved. `unlogged` is asked in the thread."""
        self.wait()
        self._pending = self._pool.submit(lambda: self._save(replace(meta, unlogged=unlogged()), parts))

    def _save(self, meta: Meta, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> StorageError | None:
        try:
            save(self._store, meta, parts, self._keep)
            self._saved(meta.step)
        except StorageError as error:
            self._say(f"the checkpoint of step {meta.step} could not be saved: {error}")
            return error
        return None

    def wait(self, *, must: bool = False) -> None:
        """Until the save under way is complete. Raises NotSaved if it failed and was the last chance, or if it `must` not fail."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        error = pending.result()
        self._failed = self._failed + 1 if error else 0
        if error and (must or self._failed >= FAILED_SAVES):
            times = f"{self._failed} saves in a row have" if self._failed > 1 else "the save has"
            raise NotSaved(f"{times} failed: {error}. The checkpoint before stands, and the same command continues from it") from error

    def close(self) -> None:
        """End the thread, after the save under way."""
        self._pool.shutdown()
