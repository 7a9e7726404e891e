"""SIGTERM, as a cluster gives it before it takes a machine away: all workers agree on a step, save it, and end.

    the command   SIGTERM (`ray job stop`, `kill`, `timeout`) -> the first worker is told      a second one ends it at once
    a worker      SIGTERM to its process
                  -> ASKED, which the workers reduce with the metrics of the step, so all stop after the same one

Python runs handlers in the main thread alone; Ray trains in another one, so a worker's handler is set by its actor (training/launch.py).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command again is right
KILLED_CODE = 143  # what a shell says of a process that SIGTERM ended
CLOSE_S = 10.0  # choice: a machine that is taken away gives some 30 s in all; metrics that wait are in the checkpoint
ASKED = threading.Event()
"""Set when this process was asked to save and end. One training a process."""


class Interrupted(RuntimeError):
    """The training was asked to end, and has saved the step that the message names."""


def listen() -> None:
    """Set ASKED at the first SIGTERM. In the main thread only."""
    signal.signal(signal.SIGTERM, _handle)


@contextmanager
def listening() -> Iterator[None]:
    """`listen` while the block runs, where this is the main thread."""
    ASKED.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _handle(number: int, frame: FrameType | None) -> None:
    if ASKED.is_set():
        raise SystemExit(KILLED_CODE)
    ASKED.set()
