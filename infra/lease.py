"""One job at a time on a table, or in the folder of a training: the second says so and stops.

Commits are safe without it (infra/dataset.py): two drivers would do the same work twice, not wrongly. A lease is a record that its
holder renews; nobody's clock is compared with another's. A record whose process is gone from this machine is void at once, one of
another machine when it was not renewed while somebody watched. Two drivers that start in the same instant may both stop.

    leases/<table>/<attempt>.<n>.json     the n-th renewal; the one before is deleted
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.storage import NotFound, StorageError, Store

RENEW_S = 5.0  # choice: a small object every five seconds
_OURS: set[str] = set()  # attempts that this very process holds
PATIENCE_S = 20.0  # choice: a holder that misses four renewals, or whose storage is away for so long, is taken for dead


class InUse(StorageError):
    """Another job holds the lease."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease. `started` is the start of the process in the kernel's ticks: process numbers come again."""

    host: str
    pid: int
    started: str
    since: str


@contextmanager
def lease(store: Store, name: str) -> Iterator[None]:
    """Hold the lease of a table, or of other work, while the block runs. Raises InUse if another job does."""
    held = _Held(store, f"leases/{name}")
    held.renew()
    try:
        held.refuse_others(name)
        held.keep()
        yield
    finally:
        held.release()


class _Held:
    def __init__(self, store: Store, folder: str) -> None:
        self.store, self.folder, self.attempt = store, folder, uuid.uuid4().hex[:16]
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = json.dumps(asdict(Holder(host=socket.gethostname(), pid=pid, started=_started(pid), since=since))).encode()
        self.renewals = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name=f"lease of {folder}", daemon=True)

    def renew(self) -> None:
        self.store.put(self._key(self.renewals + 1), self.record)
        self.renewals += 1
        if self.renewals > 1:
            self.store.delete(self._key(self.renewals - 1))

    def keep(self) -> None:
        _OURS.add(self.attempt)
        self._thread.start()

    def release(self) -> None:
        _OURS.discard(self.attempt)
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StorageError):  # storage that is away now leaves a record that is void without its process
            for key in (self._key(self.renewals), self._key(self.renewals + 1)):
                self.store.delete(key)

    def refuse_others(self, name: str) -> None:
        for attempt, renewals in self._others().items():
            holder = self._read(attempt, renewals)
            if holder and self._lives(holder, attempt, renewals):
                raise InUse(
                    f"another job is at work on {name!r} in {self.store.url} (process {holder.pid} on {holder.host}, since "
                    f"{holder.since}): wait until it ends, or stop it, and run the same command again"
                )
            self._remove(attempt)

    def _lives(self, holder: Holder, attempt: str, renewals: int) -> bool:
        if holder.host == socket.gethostname():
            here = holder.pid == os.getpid() and _started(holder.pid) == holder.started
            return attempt in _OURS if here else _started(holder.pid) == holder.started
        print(f"a job on {holder.host} was at work here: watching for {PATIENCE_S:.0f} s whether it still is", flush=True)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            time.sleep(min(1.0, PATIENCE_S))
            found = self._others().get(attempt)
            if found != renewals:
                return found is not None
        return False

    def _others(self) -> dict[str, int]:
        """attempt -> its newest renewal."""
        found: dict[str, int] = {}
        for entry in self.store.list(self.folder):
            attempt, _, number = entry.key.rsplit("/", 1)[1].removesuffix(".json").partition(".")
            if attempt != self.attempt and number.isdigit():
                found[attempt] = max(found.get(attempt, 0), int(number))
        return found

    def _read(self, attempt: str, renewals: int) -> Holder | None:
        """None for what was renewed or released meanwhile: the next look decides."""
        for number in (renewals, renewals + 1):
            try:
                return Holder(**json.loads(self.store.read(f"{self.folder}/{attempt}.{number:08d}.json")))
            except NotFound:
                continue
            except (TypeError, ValueError):  # cut off by a full disk
                return None
        return None

    def _remove(self, attempt: str) -> None:
        for entry in list(self.store.list(self.folder)):
            if entry.key.rsplit("/", 1)[1].startswith(f"{attempt}."):
                self.store.delete(entry.key)

    def _renew_until_released(self) -> None:
        while not self._ended.wait(RENEW_S):
            with suppress(StorageError):  # the work itself finds out whether storage is away
                self.renew()

    def _key(self, number: int) -> str:
        return f"{self.folder}/{self.attempt}.{number:08d}.json"


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks since it booted; empty if there is none.

    Where there is no /proc: whether it exists is all that can be known.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "there"
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rsplit(")", 1)[1].split()  # the name in brackets may hold anything
    return "" if fields[0] == "Z" else fields[19]
