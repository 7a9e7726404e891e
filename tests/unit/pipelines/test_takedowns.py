"""What a person may ask to be taken down, in which spelling, and what is told; who is kept when the best of a group goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.dataset import Dataset
from infra.picture_addresses import came_from, comparable
from pipelines import curate, gc, ingest
from pipelines.takedown_list import asked
from tests.helpers import commit_table, photographs, shrunk

A, B = "ab" * 32, "cd" * 16


def test_a_list_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"\ufeff# asked for in May\r\n\r\n  {A.upper()} \r\n{B}\nhttps://x.org/a.jpg?id=1&name=b#c\n\n".encode())
    assert asked((A,), str(path)) == {A, B, "https://x.org/a.jpg?id=1&name=b#c"}
    assert asked(("https://me:secret@x.org/a?token=secret", "/photos/a.jpg"), "") == {"https://x.org/a?token=REDACTED", "/photos/a.jpg"}


def test_what_is_neither_an_id_nor_an_address_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"image_id\n{A}\n{'z' * 64}\n")
    with pytest.raises(ValueError, match=r"list.csv line 1 \('image_id'\), .* line 3 .*neither an id .* nothing was taken down"):
        asked((), str(path))
    path.write_bytes("é".encode("utf-16"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        asked((), str(path))
    with pytest.raises(ValueError, match=r"take_down 'wall\.jpg'"):
        asked(("wall.jpg",), "")


def test_addresses_are_compared_as_the_web_does() -> None:
    assert comparable("HTTPS://Example.ORG/A?b=C") == "http://example.org/A?b=C"
    assert comparable("/a/B.jpg") == comparable("file:///a/B.jpg") == "file:///a/B.jpg"
    rows = pa.table({"source_url": ["http://example.org/A?b=C", "https://example.org/a?b=C", None, ""], "url": pa.nulls(4, pa.string()),
                     "address": ["/a", "s3://raw/x", "s3://raw/x", "/a"], "position": ["1.jpg", "Y/2.jpg", "t.tar!3.jpg", "4.jpg"]})
    for one, row in (("https://EXAMPLE.org/A?b=C", 0), ("s3://raw/x/Y/2.jpg", 1), ("s3://raw/x/t.tar!3.jpg", 2), ("file:///a/4.jpg", 3)):
        assert came_from(rows, [one]).to_pylist() == [n == row for n in range(4)]


def run(job: Any, *args: object) -> None:
    assert job.main([str(arg) for arg in args]) == 0


def rows(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    return [row for ref in dataset.snapshot(name).shards.values() for row in dataset.read(ref).to_pylist()]


def test_when_the_best_copy_is_taken_down_the_next_best_is_kept(tmp_path: Path, here: list[str],
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    photos, corpus = tmp_path / "photos", tmp_path / "c"
    photos.mkdir()
    for side_px in (200, 140, 100):
        (photos / f"{side_px}.png").write_bytes(shrunk(photographs(1)[0], side_px))
    select = ("--input", corpus, "--set", "rule.min_short_side=40", "--set", "rule.sharpness=none", "--set", "rule.flatness=none")
    run(ingest, "--input", photos, "--output", corpus)
    run(curate, *select)
    dataset = Dataset(str(corpus))
    names = {row["source_id"]: row["position"] for row in rows(dataset, "inputs")}

    def kept() -> list[str]:
        return [names[row["source_id"]] for row in rows(dataset, "selections") if row["accepted"]]

    assert kept() == ["200.png"]
    best = next(row["image_id"] for row in rows(dataset, "selections") if row["accepted"])
    run(gc, "--input", corpus, "--set", f'take_down=["{best.upper()}", "{A}"]')
    assert f"nothing here has the id {A}" in (told := capsys.readouterr().out)
    assert f"has the id {best}" not in told
    run(curate, *select)
    assert kept() == ["140.png"]
    run(gc, "--input", corpus, "--set", f'take_down=["file://{photos}/140.png"]')
    run(curate, *select)
    assert kept() == ["100.png"]


def test_a_list_that_an_earlier_version_let_pass_does_not_stop_a_selection(tmp_path: Path, here: list[str]) -> None:
    photos, corpus = tmp_path / "photos", tmp_path / "c"
    photos.mkdir()
    (photos / "a.png").write_bytes(shrunk(photographs(1)[0], 64))
    run(ingest, "--input", photos, "--output", corpus)
    Dataset(str(corpus)).add_takedown(["z" * 64, "-" * 32], "no ids")
    run(curate, "--input", corpus, "--set", "rule.min_short_side=40")


def test_nothing_is_written_when_a_list_is_refused(tmp_path: Path) -> None:
    commit_table(Dataset(str(tmp_path)), "images", [pa.table({"image_id": [A]})])
    assert gc.main(["--input", str(tmp_path), "--set", f'take_down=["{A}", "wall.jpg"]']) == 2
    assert Dataset(str(tmp_path)).takedowns() == frozenset()
