"""The client as a stage uses it: one event loop per worker, kept between shards, with its connections, rates and robots.txt."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipelines.refusal import Refused
from pipelines.web.client import WebClient
from pipelines.web.options import WebOptions

T = TypeVar("T")


class Web:
    """Blocking calls to the client."""

    def __init__(self, options: WebOptions, max_bytes: int) -> None:
        self._runner = asyncio.Runner()

        async def connect() -> WebClient:
            return WebClient(options, max_bytes)

        self._client = self._runner.run(connect())
        weakref.finalize(self, _close, self._runner, self._client)

    def fetch_all(self, urls: Sequence[str], use: Callable[[bytes], T]) -> list[T | Refused]:
        """See WebClient.fetch_all."""
        return self._runner.run(self._client.fetch_all(urls, use))


def _close(runner: asyncio.Runner, client: WebClient) -> None:
    runner.run(client.close())
    runner.close()
