"""A folder as a store: `link()` is its conditional create, and what is written outlasts a power cut."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from infra.storage import TEMPORARY, Entry, NotFound, OutsideStore, StorageError, join, unique_name

T = TypeVar("T")


class LocalStore:
    """A folder on a local or shared POSIX disk that has hard links."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _path(self, key: str) -> Path:
        path = Path(self.url, key)
        if not path.resolve().is_relative_to(self.url):
            raise OutsideStore(f"key {key!r} leads out of {self.url}")
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
        self.write(key, lambda file: file.write(data))

    def write(self, key: str, produce: Callable[[BinaryIO], T]) -> T:
        """As `put`, of what `produce` writes into the file; returns what it returned."""
        path = self._path(key)
        try:
            _make_folder(path.parent)
            told = _write_durably(path, produce)
            _sync_folder(path.parent)
            return told
        except OSError as error:
            raise self._teach(error, key) from error

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        attempt = path.with_name(unique_name("." + path.name, TEMPORARY))
        try:
            _make_folder(path.parent)
            _write_durably(attempt, lambda file: file.write(data))
            try:
                os.link(attempt, path)
            except FileExistsError:
                return path.read_bytes() == data
            _sync_folder(path.parent)
            return True
        except OSError as error:
            raise self._teach(error, key) from error
        finally:
            with suppress(OSError):
                attempt.unlink()

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG(self._path(key).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._teach(error, key) from error

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except OSError as error:
            raise self._teach(error, key) from error

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object whose key starts with the folder `prefix`, in the order of the keys; writers' temporary files among them."""
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise self._teach(error, os.path.relpath(error.filename, self.url)) from error

        walk = os.walk(self._path(prefix), onerror=fail)
        keys = sorted(Path(folder, name).relative_to(self.url).as_posix() for folder, _, names in walk for name in names)
        for key in keys:
            try:
                found = Path(self.url, key).stat()
            except FileNotFoundError:  # a temporary file, gone meanwhile, or a symbolic link to nothing
                continue
            if stat.S_ISREG(found.st_mode):
                yield Entry(key=key, size_bytes=found.st_size, modified=datetime.fromtimestamp(found.st_mtime, UTC))

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._teach(error, key) from error

    def check(self, *, write: bool = False) -> None:
        """Raise StorageError unless the folder, or the nearest existing folder above it, may be read (and written)."""
        folder = Path(self.url)
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            raise StorageError(f"{folder} is a file, expected a folder: choose another address")
        if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
            verb = "written" if write else "read"
            raise StorageError(f"{folder} may not be {verb} by this user: change its permissions or choose another address")

    def _teach(self, error: OSError, key: str) -> StorageError:
        where = f"{self.url}/{key}"
        if error.errno == errno.ENOENT:
            return NotFound(f"{where} does not exist")
        if error.errno == errno.EEXIST:
            return StorageError(f"{where} exists already: data is never overwritten, a new attempt takes a new name")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"no space left for {where}: free some space and run the same command again; it continues")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StorageError(f"this user may not access {where} ({error.strerror}): change its permissions")
        return StorageError(f"{where}: {error.strerror or error}")


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it so that they outlast a power cut: a new name is in its parent, which is synced too."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _write_durably(path: Path, produce: Callable[[BinaryIO], T]) -> T:
    with path.open("xb") as file:
        try:
            told = produce(file)
            file.flush()
            os.fsync(file.fileno())
            return told
        except BaseException:
            path.unlink(missing_ok=True)  # it is ours: "x" made it
            raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(target: Path, text: str) -> None:
    """Write a page or a card for people as a whole: a reader never sees half of one. Raises StorageError that teaches."""
    part = target.with_name(f".{target.name}{TEMPORARY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}: choose another --output") from error
