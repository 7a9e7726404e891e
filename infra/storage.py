"""Byte storage behind the data contract: a local folder or an S3 prefix, both with a conditional create.

Two kinds of object exist. A data file gets an attempt-unique name, is written once and is never renamed or overwritten (`put`).
A commit's name is decided by its content's inputs, and exactly one writer may create it (`create`): `link()` on a local disk, a
conditional PUT (If-None-Match) on S3. Credentials and endpoints come from the standard AWS_* variables.
"""

from __future__ import annotations

import errno
import io
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

RETRIES = 6  # choice: a restarted S3 server refuses requests for some seconds
RETRY_FIRST_S = 0.5  # choice: doubles each time, 0.5 .. 16 s


class StorageError(Exception):
    """Storage could not do what was asked; the message says what was found and what to do."""


class NotFound(StorageError):
    """The key does not exist."""


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
    def create(self, key: str, data: bytes) -> bool: ...
    def exists(self, key: str) -> bool: ...
    def size(self, key: str) -> int: ...
    def list(self, prefix: str = "") -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def check(self) -> None: ...


def open_store(url: str) -> Store:
    """Open a store at a local path, `file://` or `s3://bucket/prefix` address. Nothing is created or contacted yet."""
    if url.startswith("s3://"):
        return S3Store(url.rstrip("/"))
    if "://" in url and not url.startswith("file://"):
        raise StorageError(f"address {url!r} has a scheme that is not supported: use a local path or s3://bucket/prefix")
    return LocalStore(str(Path(url.removeprefix("file://")).expanduser().resolve()))


def join(url: str, *parts: str) -> str:
    """Join an address and path parts."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def unique_name(stem: str, suffix: str) -> str:
    """An attempt-unique file name: two attempts at the same work never write to the same place."""
    return f"{stem}.{uuid.uuid4().hex[:16]}{suffix}"


class LocalStore:
    """A folder on a local or shared POSIX disk."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _path(self, key: str) -> Path:
        path = Path(self.url, key)
        if not path.resolve().is_relative_to(self.url):
            raise StorageError(f"key {key!r} leads out of {self.url}")
        return path

    def child(self, *parts: str) -> LocalStore:
        return LocalStore(join(self.url, *parts))

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise self._teach(error, key) from error

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except OSError as error:
            raise self._teach(error, key) from error

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_durably(path, data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise self._teach(error, key) from error

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        attempt = path.with_name(unique_name("." + path.name, ".part"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_durably(attempt, data)
            os.link(attempt, path)
            _sync_folder(path.parent)
            return True
        except FileExistsError:
            return path.read_bytes() == data
        except OSError as error:
            raise self._teach(error, key) from error
        finally:
            attempt.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except OSError as error:
            raise self._teach(error, key) from error

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object whose key starts with the folder `prefix`, in the order of the keys."""
        root = self._path(prefix)
        paths = sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.relative_to(self.url).as_posix())
        for path in paths:
            try:
                stat = path.stat()
            except FileNotFoundError:  # a writer's temporary name, gone meanwhile
                continue
            modified = datetime.fromtimestamp(stat.st_mtime, UTC)
            yield Entry(key=path.relative_to(self.url).as_posix(), size_bytes=stat.st_size, modified=modified)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise StorageError unless the folder, or the nearest existing folder above it, can be written."""
        folder = Path(self.url)
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise StorageError(f"{folder} is a file, expected a folder: choose another address")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise StorageError(f"{folder} may not be read by this user: change its permissions or choose another address")

    @staticmethod
    def _write_durably(path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _teach(self, error: OSError, key: str) -> StorageError:
        where = f"{self.url}/{key}"
        if error.errno == errno.ENOENT:
            return NotFound(f"{where} does not exist")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"no space left for {where}: free some space and run the same command again; it continues")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StorageError(f"this user may not access {where} ({error.strerror}): change its permissions")
        return StorageError(f"{where}: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class S3Store:
    """A prefix in an S3 bucket, through s3fs. Safe to pickle: the connection is made where it is used."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def _fs(self) -> Any:
        import s3fs  # late: an import of a second that local runs do not need

        return s3fs.S3FileSystem(use_listings_cache=False, default_cache_type="readahead")  # instances are cached per process

    def _path(self, key: str) -> str:
        return join(self.url, key) if key else self.url

    def child(self, *parts: str) -> S3Store:
        return S3Store(join(self.url, *parts))

    def read(self, key: str) -> bytes:
        return cast(bytes, self._retry(lambda: self._fs.cat_file(self._path(key)), key))

    def open(self, key: str) -> BinaryIO:
        return cast(BinaryIO, self._retry(lambda: io.BufferedReader(self._fs.open(self._path(key), "rb")), key))

    def put(self, key: str, data: bytes) -> None:
        self._retry(lambda: self._fs.pipe_file(self._path(key), data), key)

    def create(self, key: str, data: bytes) -> bool:
        def attempt() -> bool:
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
                return True
            except FileExistsError:
                # Refused: another writer won, or our own first request arrived and only its answer was lost.
                return self.read(key) == data

        return cast(bool, self._retry(attempt, key))

    def exists(self, key: str) -> bool:
        return cast(bool, self._retry(lambda: self._fs.isfile(self._path(key)), key))

    def size(self, key: str) -> int:
        return int(self._retry(lambda: self._fs.info(self._path(key))["size"], key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object under the folder `prefix`, in the order of the keys."""
        found = self._retry(lambda: self._fs.find(self._path(prefix), detail=True), prefix)
        root = self.url.removeprefix("s3://") + "/"
        for path in sorted(found):
            info = found[path]
            if info["type"] == "file":
                yield Entry(key=path.removeprefix(root), size_bytes=info["size"], modified=info["LastModified"])

    def delete(self, key: str) -> None:
        try:
            self._retry(lambda: self._fs.rm_file(self._path(key)), key)
        except NotFound:
            pass

    def check(self) -> None:
        """Raise StorageError unless the bucket exists and these credentials may list it."""
        bucket = self.url.removeprefix("s3://").split("/", 1)[0]
        self._retry(lambda: _list_bucket(self._fs, bucket), "", patient=False)

    def _retry(self, call: Any, key: str, patient: bool = True) -> Any:
        """Run a request; go on through a server that is away for a while, and translate what is final."""
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(RETRIES if patient else 2):
            try:
                return call()
            except FileNotFoundError as error:
                raise self._missing(key) from error
            except PermissionError as error:
                raise StorageError(f"{self._path(key)}: access denied ({error}): check AWS_ACCESS_KEY_ID and "
                                   "AWS_SECRET_ACCESS_KEY, and that they may read and write this bucket") from error
            except (OSError, BotoCoreError, ClientError) as error:
                if "credentials" in str(error).lower():
                    raise StorageError(f"{self.url}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                                       "or AWS_PROFILE") from error
                last = error
            time.sleep(min(RETRY_FIRST_S * 2**attempt, 16))
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "the AWS default")
        raise StorageError(f"{self._path(key)}: the S3 server did not answer ({type(last).__name__}: {last}); endpoint: {endpoint}. "
                           "Start it or correct AWS_ENDPOINT_URL, then run the same command again; it continues") from last

    def _missing(self, key: str) -> StorageError:
        bucket = self.url.removeprefix("s3://").split("/", 1)[0]
        if not self._fs.exists(bucket):
            return StorageError(f"bucket {bucket!r} does not exist: create it, or correct the address {self.url}")
        return NotFound(f"{self._path(key)} does not exist")


def _list_bucket(fs: Any, bucket: str) -> None:
    fs.ls(bucket, refresh=True)


def hash_folder(url: str) -> str:
    """16 hex digits over the names and bytes of every file under an address: the identity of a folder of weights."""
    import hashlib

    store = open_store(url)
    total = hashlib.sha256()
    found = 0
    for entry in store.list():
        if not any(part.startswith(".") for part in entry.key.split("/")):
            total.update(entry.key.encode() + b"\0" + hashlib.sha256(store.read(entry.key)).digest())
            found += 1
    if not found:
        raise NotFound(f"{url} holds no file: expected a folder of weights")
    return total.hexdigest()[:16]
