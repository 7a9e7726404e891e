"""Stores by their addresses."""

from __future__ import annotations

import hashlib
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
            with store.open(entry.key) as file:
                total.update(entry.key.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
            found += 1
    if not found:
        raise NotFound(f"{url} holds no file: expected a folder of weights")
    return total.hexdigest()[:16]


def hash_file(url: str) -> str:
    """16 hex digits over the bytes of one file at an address: the identity of a file of weights."""
    folder, _, name = url.rpartition("/")
    with open_store(folder or ".").open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]  # type: ignore[arg-type]
