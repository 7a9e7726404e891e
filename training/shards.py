"""Shards of images in a worker's memory: verified as a whole, and the first rows of a large one by themselves while that goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from infra.apart import NotProved, RowsApart


class Rows:
    """A shard's rows by image id; the last of several with one id. Encoded images are views of Arrow's memory: no row copies them."""

    def __init__(self, table: pa.Table) -> None:
        whole = table.combine_chunks()
        lying = [name for name in whole.column_names if pa.types.is_binary(whole.column(name).type)]
        self._views = {name: Views(whole.column(name).combine_chunks()) for name in lying}
        self._plain = whole.drop_columns(lying).to_pylist()
        self._index = {image_id: i for i, image_id in enumerate(whole.column("image_id").to_pylist())}

    def __getitem__(self, image_id: str) -> dict[str, Any]:
        i = self._index[image_id]
        return {**self._plain[i], **{name: views[i] for name, views in self._views.items()}}


class Views:
    """The values of a binary array where they lie (a scalar of Arrow's is a copy)."""

    def __init__(self, array: pa.BinaryArray) -> None:
        _, ends, data = array.buffers()
        self._ends = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
        self._data = memoryview(data if data is not None else b"").cast("B")

    def __getitem__(self, i: int) -> memoryview:
        return self._data[self._ends[i] : self._ends[i + 1]]


class Opening:
    """A shard that is fetched and verified as a whole, in the background.

    With `apart` its rows are taken one by one until it is there, and the fetching begins behind the first of them: it takes all of a core.
    """

    def __init__(self, fetch: Callable[[], Future[Rows]], apart: Callable[[], RowsApart] | None = None) -> None:
        self._fetch, self._open_apart, self._lock = fetch, apart, Lock()
        self._whole = None if apart else fetch()

    def __getitem__(self, image_id: str) -> dict[str, Any]:
        """A verified row. Raises what the fetching of the shard raised."""
        if self._open_apart is not None and not (self._whole and self._whole.done()):
            with suppress(NotProved):  # the whole shard says what is wrong with it
                row = self._apart[image_id]
                self._begin()
                return row
        return self._begin().result()[image_id]

    def _begin(self) -> Future[Rows]:
        with self._lock:
            self._whole = self._whole or self._fetch()
            return self._whole

    @cached_property
    def _apart(self) -> RowsApart:
        assert self._open_apart is not None, "asked for above"
        return self._open_apart()
