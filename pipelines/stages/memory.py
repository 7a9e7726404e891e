"""A batch that does not fit into memory is halved, and stays so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class HalvedBatches:
    """Remembers how many items fit at once, once that was found out. None: nothing ran out yet."""

    most: int | None = None

    def run(self, count: int, work: Callable[[slice], list[Item]]) -> list[Item]:
        """`work` on items 0 .. count in parts, in order. A single item that does not fit raises torch.OutOfMemoryError."""
        import torch

        done: list[Item] = []
        while len(done) < count:
            part = slice(len(done), min(count, len(done) + (self.most or count)))
            size = part.stop - part.start
            try:
                done += work(part)
                continue
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise
                error.__traceback__ = None  # its frames hold the tensors that have to go
            self.most = size // 2
            torch.cuda.empty_cache()
        return done
