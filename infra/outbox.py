"""A queue that a thread empties towards a server which may be away."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

BATCH_METRICS = 200  # choice: 28 ms a request over HTTP, so metrics travel together
BATCH_AGE_S = 5.0  # choice: a curve that a person watches is at most this old
AGAIN_S = (0.5, 10.0)  # choice: first and longest pause before a server that is away is asked again

Point = tuple[int, dict[str, float]]
"""Metrics of one step: (step, values by name)."""
Item = Point | Callable[[], None]


class Outbox:
    """What is to be sent, in order, by a thread of its own; it tries again while the server is away, and drops what is refused."""

    def __init__(self, send_points: Callable[[Sequence[Point]], None], attempt: Callable[[Callable[[], None]], str | None]) -> None:
        """`attempt` runs a request and says why it must be tried again, if it must."""
        self._send_points, self._attempt = send_points, attempt
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._values = 0  # metrics that wait
        self._hurry = self._away = self._closed = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def add_point(self, point: Point) -> None:
        with self._changed:
            self._queue.append(point)
            self._values += len(point[1])
            self._changed.notify_all()

    def add(self, send: Callable[[], None]) -> None:
        with self._changed:
            self._queue.append(send)
            self._changed.notify_all()

    def points(self) -> list[Point]:
        with self._changed:
            return [item for item in self._queue if isinstance(item, tuple)]

    def flush(self, timeout_s: float) -> None:
        """Until nothing waits, the server is found to be away, or the time is up."""
        with self._changed:
            self._hurry, self._away = True, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue or self._away, timeout_s)

    def close(self, timeout_s: float) -> int:
        """Send what waits and end; returns how much was left."""
        with self._changed:
            self._hurry = self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue, timeout_s)
            return len(self._queue)

    def _run(self) -> None:
        pause_s = AGAIN_S[0]
        while True:
            batch = self._next()
            if batch is None:
                return
            trouble = self._attempt(self._request(batch))
            with self._changed:
                if trouble is None:
                    for _ in range(len(batch)):
                        item = self._queue.popleft()
                        self._values -= len(item[1]) if isinstance(item, tuple) else 0
                    self._hurry, pause_s = self._hurry and bool(self._queue), AGAIN_S[0]
                    self._changed.notify_all()
                    continue
                waiting, self._away = self._values, True
                self._changed.notify_all()
            if pause_s == AGAIN_S[0]:
                print(f"MLflow does not answer, {waiting} metrics wait: {trouble[:200]}", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])

    def _next(self) -> list[Item] | None:
        """The points at the head of the queue, once they are many or old enough, or the one other thing there. None: the end."""
        with self._changed:
            begun = time.monotonic()
            while not self._due(begun):
                if self._closed and not self._queue:
                    return None
                self._changed.wait(0.5 if self._queue else None)
                begun = begun if self._queue else time.monotonic()
            if not isinstance(self._queue[0], tuple):
                return [self._queue[0]]
            batch: list[Item] = []
            for item in self._queue:
                if not isinstance(item, tuple) or len(batch) >= BATCH_METRICS:
                    break
                batch.append(item)
            return batch

    def _due(self, begun: float) -> bool:
        if not self._queue:
            return False
        old = time.monotonic() - begun > BATCH_AGE_S
        return self._hurry or old or self._values >= BATCH_METRICS or not isinstance(self._queue[0], tuple)

    def _request(self, batch: list[Item]) -> Callable[[], None]:
        first = batch[0]
        if isinstance(first, tuple):
            return lambda: self._send_points([item for item in batch if isinstance(item, tuple)])
        return first
