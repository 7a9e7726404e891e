"""Byte storage behind the data contract: a local folder or an S3 prefix, both with a conditional create.

Two kinds of object exist. A data file gets an attempt-unique name, is written once and is never renamed or overwritten (`put`).
A commit's name is decided by its content's inputs, and exactly one writer may create it (`create`): `link()` on a local disk
(infra/local_store.py), a conditional PUT (If-None-Match) on S3 (infra/s3.py); infra/stores.py opens either by its
address. Credentials and endpoints come from the standard AWS_* variables.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol, TypeVar

TEMPORARY = ".part"  # suffix of what a local `create` writes before its link; a killed writer leaves one behind, `gc` sweeps it

T = TypeVar("T")


class StorageError(Exception):
    """Storage could not do what was asked; the message says what was found and what to do."""


class NotFound(StorageError):
    """The key does not exist."""


class OutsideStore(StorageError):
    """The key, followed through its links, leads out of the store."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object: key relative to the store, size in bytes, time of the last write (UTC)."""

    key: str
    size_bytes: int
    modified: datetime


class Store(Protocol):
    """An address under which keys live. Keys are relative, with forward slashes."""

    url: str

    def child(self, *parts: str) -> Store: ...
    def read(self, key: str) -> bytes: ...
    def open(self, key: str) -> BinaryIO: ...
    def put(self, key: str, data: bytes) -> None: ...
    def write(self, key: str, produce: Callable[[BinaryIO], T]) -> T: ...
    def create(self, key: str, data: bytes) -> bool: ...
    def exists(self, key: str) -> bool: ...
    def size(self, key: str) -> int: ...
    def list(self, prefix: str = "") -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def check(self, *, write: bool = False) -> None: ...


def join(url: str, *parts: str) -> str:
    """Join an address and path parts."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def unique_name(stem: str, suffix: str) -> str:
    """An attempt-unique file name: two attempts at the same work never write to the same place."""
    return f"{stem}.{uuid.uuid4().hex[:16]}{suffix}"


def read_json(store: Store, key: str, remedy: str = "restore it from a copy") -> Any:
    """What a small file of ours says. StorageError that names the file, and what to do, if it is cut or altered."""
    try:
        return json.loads(store.read(key))
    except ValueError as error:
        raise StorageError(f"{store.url}/{key} is no JSON ({error}), so it was cut or altered: {remedy}") from error
