"""Batches of decoded pictures: the next batch is decoded by threads while a model works on this one."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Batch:
    """`rows` are positions in the table, one for each of `pictures` (uint8 RGB); `failed` names those that did not decode."""

    rows: list[int] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def decoded_batches(images: pa.Table, rows: Sequence[int], batch_size: int, row_id: str, prepare: Prepare | None = None) -> Iterator[Batch]:
    """Decode chosen rows of an images table, `batch_size` at a time. `prepare` (shrink, crop) runs in the decoding thread.

    A picture that cannot be decoded becomes a failed outcome under its `row_id`, and disturbs no other.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    groups = [rows[low:low + batch_size] for low in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        def submit(group: Sequence[int]) -> list[Future[Any]]:
            return [pool.submit(_decoded, images, row, row_id, prepare) for row in group]

        ahead = submit(groups[0]) if groups else []
        for i, group in enumerate(groups):
            current, ahead = ahead, submit(groups[i + 1]) if i + 1 < len(groups) else []
            yield _gathered(group, current)


def _decoded(images: pa.Table, row: int, row_id: str, prepare: Prepare | None) -> Any:
    from supir_model.images import ImageError, decode

    try:
        picture = decode(images.column("bytes")[row].as_py()).rgb_HWC
        return prepare(picture) if prepare else picture
    except ImageError as error:
        return Outcome(images.column(row_id)[row].as_py(), "failed", error.code, str(error))


def _gathered(rows: Sequence[int], futures: list[Future[Any]]) -> Batch:
    batch = Batch()
    for row, result in zip(rows, (future.result() for future in futures), strict=True):
        if isinstance(result, Outcome):
            batch.failed.append(result)
        else:
            batch.rows.append(row)
            batch.pictures.append(result)
    return batch
