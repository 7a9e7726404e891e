"""Tables that are broken on purpose end as UnusableTable, and take no more room than others."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.stores import open_store
from pipelines.table_columns import Columns, UnusableTable
from pipelines.table_files import cells, look
from pipelines.table_text import LINE_CHARS


@pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.txt.gz"])
def test_one_line_that_unpacks_into_very_many_bytes_is_not_held(name: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        for _ in range(12):
            file.write(b"a" * LINE_CHARS)
    tracemalloc.start()
    with pytest.raises(UnusableTable, match=r"a line of 4,194,304 characters or more\): fetch it again"):
        list(look(open_store(str(tmp_path)), name, Columns()).batches())
    assert tracemalloc.get_traced_memory()[1] < 4 * LINE_CHARS
    tracemalloc.stop()


def test_a_record_of_img2dataset_with_a_column_twice_is_read_as_a_table_of_urls(tmp_path: Path) -> None:
    names = ["key", "key", "status", "error_message", "url"]
    pq.write_table(pa.Table.from_arrays([pa.array(["http://h/"])] * 5, names=names), tmp_path / "00000.parquet")
    table = look(open_store(str(tmp_path)), "00000.parquet", Columns(), beside=True)
    assert (table.kind, [batch["url"].to_pylist() for batch in table.batches()]) == ("url", [["http://h/"]])


def test_pictures_that_stand_twice_under_the_name_that_was_asked_for_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"])] * 2, names=["image", "image"]), tmp_path / "t.parquet")
    with pytest.raises(UnusableTable, match=r"several columns 'image'.*columns\.image="):
        look(open_store(str(tmp_path)), "t.parquet", Columns(image="image"))


def test_a_damaged_name_of_a_column_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"address": ["x"]}), tmp_path / "t.parquet", store_schema=False)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole.replace(b"address", b"\xffddress"))
    with pytest.raises(UnusableTable, match="no whole Parquet file"):
        look(open_store(str(tmp_path)), "t.parquet", Columns())


def test_a_table_that_lost_its_pictures_after_it_was_listed_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(UnusableTable, match="no column with pictures any more"):
        cells(open_store(str(tmp_path)), "t.parquet", "", [0])
