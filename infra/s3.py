"""A prefix in an S3 bucket as a store, through s3fs: any server that honours If-None-Match (AWS, SeaweedFS, MinIO, Ceph).

What is final (no such bucket, access denied, no credentials) is told at once and in words; a server that is away for a while is
waited for. s3fs reports errors as OSError with the server's own answer behind it, so the answer's code decides, not the OSError.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO, TypeVar, cast

from infra.storage import Entry, NotFound, StorageError, join, unique_name

RETRIES = 6  # choice: a restarted S3 server refuses requests for some seconds
RETRY_FIRST_S = 0.5  # choice: doubles each time, 0.5 .. 8 s, times 0.5 to 1, beside s3fs's own two seconds of retries each
PART_BYTES = 16 * 2**20  # choice: of an upload in parts; S3 takes 10,000 of them, 160 GB
REFUSED = ("PreconditionFailed", "412")  # the key exists, so a conditional put was not done
NO_BUCKET = ("NoSuchBucket",)
DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled", "403")

T = TypeVar("T")
_connections: dict[Any, Any] = {}
_connecting = threading.Lock()


class _Refused(Exception):
    """The server holds the key already."""


class S3Store:
    """A prefix in an S3 bucket. Safe to pickle and to use from many threads: the connection is made where it is used."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bucket = url.removeprefix("s3://").split("/", 1)[0]
        if not self.bucket:
            raise StorageError(f"address {url!r} names no bucket: expected s3://bucket/prefix")

    @property
    def _fs(self) -> Any:
        return _connect()

    def _path(self, key: str) -> str:
        return join(self.url, key) if key else self.url

    def child(self, *parts: str) -> S3Store:
        return S3Store(join(self.url, *parts))

    def read(self, key: str) -> bytes:
        return cast(bytes, self._retry(lambda: self._fs.cat_file(self._path(key)), key))

    def open(self, key: str) -> BinaryIO:
        return cast(BinaryIO, self._retry(lambda: io.BufferedReader(self._patient(key)), key))

    def _patient(self, key: str) -> Any:
        """An open object each of whose reads waits for a server that is away."""
        file = self._fs.open(self._path(key), "rb")
        fetch = file.cache.fetcher
        file.cache.fetcher = lambda start, end: self._retry(lambda: fetch(start, end), key)
        return file

    def put(self, key: str, data: bytes) -> None:
        self._retry(lambda: self._fs.pipe_file(self._path(key), data), key)

    def write(self, key: str, produce: Callable[[BinaryIO], T]) -> T:
        """As `put`, of what `produce` writes, in parts; `produce` is asked again when the server was away."""
        return self._retry(lambda: self._write(key, produce), key)

    def _write(self, key: str, produce: Callable[[BinaryIO], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        file = self._fs.open(self._path(key), "wb", block_size=PART_BYTES)
        try:
            told = produce(file)
        except BaseException:
            file.closed = True  # closing would make an object of what is there
            with suppress(OSError, BotoCoreError, ClientError):
                file.discard()
            raise
        file.close()
        return told

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._retry(lambda: self._fs.pipe_file(self._path(key), data, mode="create"), key)
            return True
        except _Refused:
            # another writer won, or our own first request arrived and only its answer was lost
            return self.read(key) == data

    def exists(self, key: str) -> bool:
        try:
            return bool(self._info(key)["type"] == "file")
        except NotFound:
            return False

    def size(self, key: str) -> int:
        return int(self._info(key)["size"])

    def _info(self, key: str) -> dict[str, Any]:
        return cast(dict[str, Any], self._retry(lambda: self._fs.info(self._path(key)), key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object under the folder `prefix`, in the order of the keys."""
        for key, size_bytes, modified in sorted(self._objects(prefix)):  # measured: 270 bytes each; s3fs's own listing takes 1,070
            yield Entry(key=key, size_bytes=size_bytes, modified=modified)

    def _objects(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """(key, bytes, time of the last write) of every object under a folder, page by page."""
        root = f"{self.url.removeprefix('s3://')}/".split("/", 1)[1]
        folder = f"{root}{prefix.strip('/')}/" if prefix else root
        more: dict[str, str] = {}
        while True:
            page = self._page(folder, more, prefix)
            for one in page.get("Contents", ()):
                if not one["Key"].endswith("/"):
                    yield one["Key"].removeprefix(root), one["Size"], one["LastModified"].astimezone(UTC)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, folder: str, more: dict[str, str], key: str) -> dict[str, Any]:
        asked = {"Bucket": self.bucket, "Prefix": folder, **more}
        return cast(dict[str, Any], self._retry(lambda: self._fs.call_s3("list_objects_v2", **asked), key))

    def delete(self, key: str) -> None:
        with suppress(NotFound):
            self._retry(lambda: self._fs.rm_file(self._path(key)), key)

    def check(self, *, write: bool = False) -> None:
        """Raise StorageError unless the bucket exists and these credentials may list it (and, with `write`, put and delete)."""
        self._retry(lambda: self._fs.call_s3("list_objects_v2", Bucket=self.bucket, MaxKeys=1), "", tries=1)
        if write:
            probe = unique_name("attempts/probe", ".json")
            self._retry(lambda: self._fs.pipe_file(self._path(probe), b""), probe, tries=1)
            self.delete(probe)

    def _retry(self, call: Callable[[], T], key: str, tries: int = RETRIES) -> T:
        """Run a request; go on through a server that is away for a while, and translate what is final."""
        from botocore.exceptions import BotoCoreError, ClientError

        for attempt in range(tries):
            try:
                return call()
            except (OSError, ValueError, BotoCoreError, ClientError) as error:
                final = self._final(error, key)
                if final is not None:
                    raise final from error
                last: Exception = error
            if attempt + 1 < tries:
                time.sleep(RETRY_FIRST_S * 2**attempt * random.uniform(0.5, 1.0))  # a thousand workers do not come back at once
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "the AWS default")
        raise StorageError(f"{self._path(key)}: the S3 server did not answer ({type(last).__name__}: {last}); endpoint: {endpoint}. "
                           "Start it or correct AWS_ENDPOINT_URL, then run the same command again; it continues") from last

    def _final(self, error: Exception, key: str) -> Exception | None:
        """What to raise for an error that another try would not mend; None for one that it might."""
        from botocore.exceptions import (
            InvalidRegionError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
            ProfileNotFound,
        )

        code = _code(error)
        if code in REFUSED:
            return _Refused(key)
        if isinstance(error, FileNotFoundError) or code in NO_BUCKET:
            return self._missing(key, code)
        if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return StorageError(f"{self.url}: no credentials found ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                                "or AWS_PROFILE, on the machine that does the work (a submitted job does not see your shell's: "
                                "--runtime-env-json hands them over)")
        if isinstance(error, PermissionError) or code in DENIED:
            return StorageError(f"{self._path(key)}: access denied ({error}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                                "and that they may read and write this bucket")
        if isinstance(error, ValueError | ParamValidationError | InvalidRegionError) or code == "InvalidBucketName":
            return StorageError(f"{self._path(key)}: {error}; expected an address s3://bucket/prefix and, in AWS_ENDPOINT_URL, "
                                "http://host:port")
        return None

    def _missing(self, key: str, code: str) -> StorageError:
        # HEAD answers 404 without a code: only then is the bucket asked for
        if code in NO_BUCKET or (code not in ("NoSuchKey",) and not self._fs.exists(self.bucket)):
            return StorageError(f"bucket {self.bucket!r} does not exist: create it, or correct the address {self.url}")
        return NotFound(f"{self._path(key)} does not exist")


def _code(error: BaseException | None) -> str:
    """The code of the server's answer, from the error or from what caused it; empty if there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _connect() -> Any:
    """One connection for a process and its AWS_* variables, shared by all threads (s3fs's own cache makes one for each thread)."""
    settings = (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _connecting:
        if settings not in _connections:
            import s3fs  # late: an import of a second

            _connections.clear()
            _connections[settings] = s3fs.S3FileSystem(use_listings_cache=False, default_cache_type="readahead", skip_instance_cache=True)
            _connections[settings].connect()
        return _connections[settings]
