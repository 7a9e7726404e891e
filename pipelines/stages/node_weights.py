"""Weights that come to a node once, however many workers want them at a time: under a lock, checked by hash, complete or absent.

`SUPIR_WEIGHTS_CACHE` names the folder (~/.cache/open-supir/weights without it); the hub's models lie in the hub's own cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from infra.storage import Entry, NotFound, Store
from infra.stores import hash_folder, open_store

FILES_AT_ONCE = 4  # choice: one stream of S3 does not fill a node's network
PIECE_BYTES = 8 << 20
PART = ".part"
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a hub's model; no pickled weights


def cache_folder() -> Path:
    """Where weights from S3 lie on this node."""
    return Path(os.environ.get("SUPIR_WEIGHTS_CACHE") or Path.home() / ".cache" / "open-supir" / "weights").expanduser()


def from_s3(address: str, identity: str = "") -> Path:
    """The folder on this node with the files of an address. Other weights at the same address are another folder.

    Raises ValueError if what came does not have the hash `identity`, or if the node has no room; StorageError if S3 refuses.
    """
    store = open_store(address)
    # a name such as ../x or /x would leave the folder
    entries = [entry for entry in store.list() if all(part and not part.startswith(".") for part in entry.key.split("/"))]
    if not entries:
        raise NotFound(f"{address} holds no file: expected a folder of weights")
    listed = "\n".join([address, *(f"{entry.key} {entry.size_bytes} {entry.modified.isoformat()}" for entry in entries)])
    name = address.rstrip("/").rsplit("/", 1)[-1]
    place = cache_folder() / f"{name}-{identity or 'unchecked'}-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"
    with only_one(place):
        if not place.is_dir():
            _bring(store, entries, place, identity)
    return place


def _bring(store: Store, entries: list[Entry], place: Path, identity: str) -> None:
    part = place.with_name(place.name + PART)
    shutil.rmtree(part, ignore_errors=True)  # of a worker that was killed
    needed, free = sum(entry.size_bytes for entry in entries), shutil.disk_usage(place.parent).free
    if needed > free:
        raise ValueError(f"{store.url} has {needed / 1e9:.1f} GB, {place.parent} has room for {free / 1e9:.1f}: free some, or set "
                         "SUPIR_WEIGHTS_CACHE to a larger disk")
    try:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(lambda entry: _copy(store, entry.key, part / entry.key), entries))
        found = hash_folder(str(part))
        if identity and found != identity:
            raise ValueError(f"{store.url} had the hash {identity} when the job began, and what came to this node has {found}: were the "
                             "weights replaced, or damaged on the way? Run the same command again")
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(store: Store, key: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open(key) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, PIECE_BYTES)


def from_hub(model: str, revision: str | None) -> Path:
    """The folder of a hub's model in the hub's cache of this node, brought if need be; every file that the hub names by its sha256 is
    read once and compared.

    Raises ValueError that teaches if the model is not there and cannot be had, or if a file is damaged, which is removed.
    """
    from httpx2 import HTTPError  # the hub's client lets its transport's errors through
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    cache = Path(constants.HF_HUB_CACHE)
    with only_one(cache / ("supir--" + model.replace("/", "--"))):
        try:
            snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=list(WANTED), cache_dir=cache))
        except (HFValidationError, HTTPError, OSError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{model} cannot be had from {constants.ENDPOINT} ({type(error).__name__}: {said}): is the id right, is "
                             "HF_TOKEN set if it is gated, and can this machine reach the hub or its cache?") from error
        _check_hub_files(snapshot)
    return snapshot


def _check_hub_files(snapshot: Path) -> None:
    seal = snapshot.parent.parent / f"supir-checked-{snapshot.name}"
    if seal.exists():
        return
    for path in sorted(snapshot.rglob("*")):
        told = path.resolve().name  # the hub's cache names a large file by its sha256, a small one by its git hash
        if path.is_file() and len(told) == 64:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != told:
                path.resolve().unlink()
                raise ValueError(f"{path} was damaged: its sha256 is {found}, the hub says {told}. It was removed: run the same command "
                                 "again")
    seal.touch()


@contextmanager
def only_one(place: Path) -> Iterator[None]:
    """One process of this node at a time; the lock goes with a process that is killed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(place.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
