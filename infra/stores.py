"""Stores by their addresses."""

from __future__ import annotations

import hashlib
import posixpath
from pathlib import Path

from infra.local_store import LocalStore
from infra.storage import NotFound, StorageError, Store


def open_store(url: str) -> Store:
    """Open a store at a local path, `file://` or `s3://bucket/prefix` address. Nothing is created or contacted yet."""
    if url.startswith("s3://"):
        from infra.s3 import S3Store  # late: local runs do not need it

        return S3Store("s3://" + url.removeprefix("s3://").rstrip("/"))
    if not url:
        raise StorageError("the address is empty: give a local path or s3://bucket/prefix")
    if "://" in url and not url.startswith("file://"):
        raise StorageError(f"address {url!r} has a scheme that is not supported: use a local path or s3://bucket/prefix")
    return LocalStore(str(Path(url.removeprefix("file://")).expanduser().resolve()))


def hash_folder(url: str) -> str:
    """16 hex digits over the names and bytes of every file under an address: the identity of a folder of weights."""
    store = open_store(url)
    total = hashlib.sha256()
    found = 0
    for entry in store.list():
        if not any(part.startswith(".") for part in entry.key.split("/")):
            total.update(entry.key.encode() + b"\0" + _sha256(store, entry.key))
            found += 1
    if not found:
        raise NotFound(f"{url} holds no file: expected a folder of weights")
    return total.hexdigest()[:16]


def hash_weights(url: str) -> str:
    """16 hex digits that name weights wherever they lie: of a folder's files, or of the bytes of one file."""
    folder, name = posixpath.split(url)
    store = open_store(folder or ".")
    if not (Path(store.url, name).is_file() if isinstance(store, LocalStore) else store.exists(name)):
        return hash_folder(url)
    return _sha256(store, name).hex()[:16]


def _sha256(store: Store, key: str) -> bytes:
    """Of a file of weights. On a disk it may be a link that leads out of the folder, as those of a hub's cache are."""
    with Path(store.url, key).open("rb") if isinstance(store, LocalStore) else store.open(key) as file:
        return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
