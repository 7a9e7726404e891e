"""Decoded pictures: the next ones are decoded by threads while a model works on these."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.ledger import Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODE_THREADS = 2  # choice: decoders release the GIL; more than this only helps a GPU that is starved

Prepare = Callable[["NDArray[Any]"], "NDArray[Any]"]


@dataclass
class Waiting:
    """How long somebody waited for decoded pictures."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Batch:
    """`rows` are positions in the table, one for each of `pictures` (uint8 RGB); `failed` names those that did not decode."""

    rows: list[int] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def decoded_rows(images: pa.Table, rows: Sequence[int], ahead: int, row_id: str, prepare: Callable[[NDArray[Any], int], Any] | None = None,
                 waiting: Waiting | None = None) -> Iterator[tuple[int, Any | Outcome]]:
    """(row, picture) of chosen rows of an images table in their order, `ahead` of them decoded before they are asked for.

    `prepare(picture, row)` (shrink, crop) runs in the decoding thread. A picture that cannot be decoded comes as a failed outcome
    under its `row_id`, and disturbs no other.
    """
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        todo = iter(rows)
        begun: deque[tuple[int, Future[Any]]] = deque()
        try:
            while True:
                while len(begun) < ahead + 1 and (row := next(todo, None)) is not None:
                    begun.append((row, pool.submit(_decoded, images, row, row_id, prepare)))
                if not begun:
                    return
                row, future = begun.popleft()
                start = time.monotonic()
                result = future.result()
                if waiting is not None:
                    waiting.seconds += time.monotonic() - start
                yield row, result
        finally:
            for _, future in begun:  # the caller left
                future.cancel()


def decoded_batches(images: pa.Table, rows: Sequence[int], batch_size: int, row_id: str, prepare: Prepare | None = None,
                    waiting: Waiting | None = None) -> Iterator[Batch]:
    """Decode chosen rows of an images table, `batch_size` at a time; the next batch is decoded while the caller has this one."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    shaped = None if prepare is None else lambda picture, _row: prepare(picture)
    batch = Batch()
    for row, result in decoded_rows(images, rows, batch_size, row_id, shaped, waiting):
        if isinstance(result, Outcome):
            batch.failed.append(result)
        else:
            batch.rows.append(row)
            batch.pictures.append(result)
        if len(batch.rows) + len(batch.failed) == batch_size:
            yield batch
            batch = Batch()
    if batch.rows or batch.failed:
        yield batch


def _decoded(images: pa.Table, row: int, row_id: str, prepare: Callable[[NDArray[Any], int], Any] | None) -> Any:
    from supir_model.images import ImageError, decode

    try:
        picture = decode(images.column("bytes")[row].as_py()).rgb_HWC
        return prepare(picture, row) if prepare else picture
    except ImageError as error:
        return Outcome(images.column(row_id)[row].as_py(), "failed", error.code, str(error))
