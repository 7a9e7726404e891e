"""The client as a stage uses it: one event loop per worker, kept between shards, with its connections, rates and robots.txt."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipelines.refusal import Refused
from pipelines.web.client import WebClient
from pipelines.web.options import WebOptions

T = TypeVar("T")


class Web:
    """Blocking calls to the client, from any thread. The loop has a thread of its own: the C library keeps what a thread freed for that
    thread, so that pictures read by two of them would take their room twice.
    """

    def __init__(self, options: WebOptions, max_bytes: int) -> None:
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="web")

        async def connect() -> WebClient:
            return WebClient(options, max_bytes)

        self._client = self._run(connect())
        weakref.finalize(self, _close, self._thread, self._runner, self._client)

    def fetch_all(self, urls: Sequence[str], use: Callable[[bytes], T]) -> list[T | Refused]:
        """See WebClient.fetch_all."""
        return self._run(self._client.fetch_all(urls, use))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.submit(self._runner.run, work).result()


def _close(thread: ThreadPoolExecutor, runner: asyncio.Runner, client: WebClient) -> None:
    runner.run(client.close())  # in this thread: at the end of the process the other one is gone
    runner.close()
    thread.shutdown(wait=False)
