"""What the command and its workers tell each other while Ray runs them: lines to print, an order to end, why the training stopped."""

from __future__ import annotations

import asyncio


class Exchange:
    """An actor beside the command (training/launch.py); it outlives the groups of workers that are started one after another."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._ordered = asyncio.Event()
        self._reason: tuple[str, bool] | None = None

    async def say(self, line: str) -> None:
        self._lines.append(line)

    async def lines(self) -> list[str]:
        """What was said since this was last asked."""
        said, self._lines = self._lines, []
        return said

    async def order(self) -> None:
        """The workers shall save the step that they are in, and end."""
        self._ordered.set()

    async def ordered(self) -> None:
        """Returns when the order has come."""
        await self._ordered.wait()

    async def stop(self, reason: str, interrupted: bool) -> None:
        """Why the training must not be tried again. The first worker to find it is heard; the others' reasons follow from it."""
        self._reason = self._reason or (reason, interrupted)

    async def reason(self) -> tuple[str, bool] | None:
        """(reason, whether it was asked to end), if the training was stopped."""
        return self._reason
