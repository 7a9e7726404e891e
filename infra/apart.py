"""Single rows of a committed shard of images, each verified by itself, before the shard is fetched and hashed as a whole.

A commit holds two hashes: of the file's bytes, and of its rows' values, into which an image enters by its own sha256, the `image_id`
(infra/digest.py). So the columns beside the images prove by the second hash that they are what was committed, and then an image does by
its id. What is not proved is never handed out.
"""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.digest import VOLATILE, content_digest
from infra.storage import StorageError, Store

if TYPE_CHECKING:
    from infra.dataset import ShardRef

ID, IMAGE = "image_id", "bytes"
BROKEN = (StorageError, pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError)  # of altered files


class NotProved(Exception):
    """This row cannot be told from an altered one without the whole shard."""


class RowsApart:
    """The rows of one shard, by image id: a row group is read for each image. Raises NotProved.

    `columns` are those of the wanted ones that the shard has, without what is in no digest.
    """

    def __init__(self, store: Store, ref: ShardRef, columns: list[str]) -> None:
        try:
            self._file = pq.ParquetFile(store.open(ref.path))
            beside = self._beside()
            proved = content_digest(beside, sha256_of={IMAGE: ID}) == ref.digest
        except BROKEN as error:
            raise NotProved(f"{ref.path}: {error}") from error
        if not proved:
            raise NotProved(f"{ref.path}: its columns have another digest, or its ids are not its images' sha256")
        self.columns = [name for name in columns if name in beside.column_names and name not in VOLATILE]
        texts = beside.select([name for name in self.columns if name != IMAGE])
        self._lock = Lock()
        self._rows = {row[ID]: (i, row) for i, row in enumerate(texts.to_pylist())}

    def _beside(self) -> pa.Table:
        """All columns but the images, which are nulls."""
        schema = self._file.schema_arrow
        beside = self._file.read(columns=[name for name in schema.names if name != IMAGE], use_threads=False)
        return beside.append_column(schema.field(IMAGE), pa.nulls(beside.num_rows, schema.field(IMAGE).type))

    def __getitem__(self, image_id: str) -> dict[str, Any]:
        try:
            at, row = self._rows[image_id]
            with self._lock:  # one file, many threads
                image = self._image(at)
        except BROKEN as error:
            raise NotProved(f"image {image_id}: {error}") from error
        if hashlib.sha256(image).hexdigest() != image_id:
            raise NotProved(f"image {image_id} has another sha256")
        return {**row, IMAGE: memoryview(image).cast("B")}

    def _image(self, at: int) -> pa.Buffer:
        group = 0
        while at >= (rows := self._file.metadata.row_group(group).num_rows):
            at, group = at - rows, group + 1
        found: pa.Buffer = self._file.read_row_group(group, columns=[IMAGE], use_threads=False).column(IMAGE)[at].as_buffer()
        return found
