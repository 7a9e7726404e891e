"""What a tree of processes takes of the machine's memory, sampled from /proc while it works (Linux; elsewhere nothing is measured)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

EVERY_S = 0.5  # choice: a peak of half a second is seen, and reading /proc costs nothing that counts
PROC = Path("/proc")


class PeakMemory:
    """The highest sum of memory over this process's descendants between `start` and `stop`; memory they share is counted once."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_gib(self) -> float | None:
        """GiB, or None where it cannot be measured."""
        return round(self.peak_bytes / 2**30, 2) if self.peak_bytes else None

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.peak_bytes = max(self.peak_bytes, sum(proportional_bytes(pid) for pid in descendants(os.getpid())))


def descendants(root: int) -> list[int]:
    """All processes below one, itself left out."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of one process, what it shares divided by those who share it; 0 if it is gone or not ours to see."""
    with suppress(OSError, ValueError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
