"""How often one host is asked: so many requests at a time, so many a second, and not before it said it wants to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipelines.web.robots import Rules


@dataclass
class Host:
    """One scheme, name and port. Waiting here occupies none of the worker's places, so a slow host delays no other."""

    slots: asyncio.Semaphore
    interval_s: float
    next_at: float = 0.0
    rules: Rules | None = None
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def turn(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """A moment at which this host may be asked, and one of the worker's places."""
        async with self.slots:
            while (wait_s := self.next_at - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            self.next_at = max(self.next_at, time.monotonic()) + self.interval_s
            async with places:
                yield

    def pause(self, wait_s: float) -> None:
        """Ask nothing for so long."""
        self.next_at = max(self.next_at, time.monotonic() + wait_s)
