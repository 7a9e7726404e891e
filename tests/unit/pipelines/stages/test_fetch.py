"""Fetching: the bytes as they are, and a reason for everything that is not an image."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from infra.ledger import Outcome
from pipelines import inputs_table
from pipelines.sources import Source
from pipelines.stages.fetch import SCHEMA, Fetch
from tests.helpers import ROOT, photographs, shrunk
from tests.unit.pipelines.test_sources import ODD_NAMES, put, tar_file

STAGE = Fetch(max_bytes=2_000_000, max_pixels=10_000_000)


def rows_of(url: str | Path) -> pa.Table:
    source = Source(str(url))
    rows = [inputs_table.to_row(item, source.address, source.address) for item in source.items()]
    return pa.Table.from_pylist(rows, schema=inputs_table.SCHEMA)


def fetched(url: str | Path, stage: Fetch = STAGE, **params: object) -> tuple[dict[str, dict[str, object]], dict[str, Outcome]]:
    """(images by position, outcomes by position)."""
    rows = rows_of(url)
    names = dict(zip(rows["source_id"].to_pylist(), rows["position"].to_pylist()))
    result = stage.process({"inputs": rows}, params)
    assert result.table.num_rows + len(result.outcomes) == rows.num_rows
    assert result.table.schema == SCHEMA
    return {names[row["source_id"]]: row for row in result.table.to_pylist()}, {names[o.row_id]: o for o in result.outcomes}


@pytest.fixture(scope="module")
def picture() -> bytes:
    return shrunk(photographs(1)[0], 64)


def test_bytes_are_untouched_and_provenance_is_carried(tmp_path: Path, picture: bytes) -> None:
    put(tmp_path / "p", "a.png", data=picture)
    (tmp_path / "p/photos.csv").write_text("file,licence,licence_url,attribution,source_url\na.png,CC0-1.0,http://l,Ada,http://s\n")
    images, outcomes = fetched(tmp_path / "p")
    row = images["a.png"]
    assert row["bytes"] == picture
    assert row["image_id"] == hashlib.sha256(picture).hexdigest()
    assert [row[name] for name in ("format", "licence", "licence_url", "attribution", "source_url")] == \
        ["PNG", "CC0-1.0", "http://l", "Ada", "http://s"]
    assert not outcomes


def test_a_tar_of_many_members_is_opened_once(tmp_path: Path, picture: bytes) -> None:
    """Small files are read in bulk: one handle a tar, not one a member."""
    for name in ("a.tar", "b.tar"):
        tar_file(tmp_path / name, [(f"{i}.png", picture) for i in range(40)])
    rows, opened = rows_of(tmp_path), Counter[str]()
    looking = True

    def look(event: str, args: tuple[object, ...]) -> None:
        if looking and event == "open" and str(args[0]).endswith(".tar"):
            opened[Path(str(args[0])).name] += 1

    sys.addaudithook(look)  # for the life of the process: Python takes none back
    try:
        result = STAGE.process({"inputs": rows}, {})
    finally:
        looking = False
    assert result.table.num_rows == 80
    assert opened == {"a.tar": 1, "b.tar": 1}


def test_every_kind_of_bad_input_has_its_reason_and_disturbs_no_other(tmp_path: Path, picture: bytes) -> None:
    folder = tmp_path / "p"
    put(folder, "good.png", "gone.png", data=picture)
    put(folder, "empty.jpg", data=b"")
    put(folder, "text.jpg", data=b"this is no picture")
    put(folder, "large.png", data=picture + b"\0" * 2_000_000)
    (folder / "huge_header.png").write_bytes((ROOT / "examples/photos/bad_huge_header.png").read_bytes())
    put(tmp_path, "secret.png", data=picture)
    (folder / "outside.png").symlink_to(tmp_path / "secret.png")
    (folder / "nowhere.png").symlink_to("nothing.png")
    (folder / "inside.png").symlink_to("good.png")
    rows = rows_of(folder)
    (folder / "gone.png").unlink()
    result = STAGE.process({"inputs": rows}, {})
    names = dict(zip(rows["source_id"].to_pylist(), rows["position"].to_pylist()))
    assert {names[o.row_id]: (o.status, o.reason) for o in result.outcomes} == {
        "empty.jpg": ("failed", "empty"), "text.jpg": ("failed", "not_an_image"), "large.png": ("failed", "too_many_bytes"),
        "huge_header.png": ("failed", "too_many_pixels"), "gone.png": ("failed", "vanished"), "nowhere.png": ("failed", "vanished"),
        "outside.png": ("failed", "outside_source")}
    assert [names[one] for one in result.table["source_id"].to_pylist()] == ["good.png", "inside.png"]
    assert all(names[o.row_id] in o.detail for o in result.outcomes)


def test_odd_names_are_fetched(tmp_path: Path, picture: bytes) -> None:
    put(tmp_path, *ODD_NAMES, data=picture)
    images, outcomes = fetched(tmp_path)
    assert (len(images), outcomes) == (len(ODD_NAMES), {})


def test_members_of_tars_are_read_where_they_lie(tmp_path: Path, picture: bytes) -> None:
    whole = tar_file(tmp_path / "b.tar", [("1.png", picture), ("2.jpg", b""), ("sub/3.png", picture)])
    images, outcomes = fetched(tmp_path)
    assert sorted(images) == ["b.tar!1.png", "b.tar!sub/3.png"]
    assert outcomes["b.tar!2.jpg"].reason == "empty"
    rows = rows_of(tmp_path)
    whole.write_bytes(whole.read_bytes()[:700])
    cut = STAGE.process({"inputs": rows}, {})
    assert {o.reason for o in cut.outcomes} == {"cut_short", "empty"}  # "2.jpg" asks for no bytes
    whole.unlink()
    assert {o.reason for o in STAGE.process({"inputs": rows}, {}).outcomes} == {"vanished"}


def test_a_source_that_was_taken_down_is_not_read(tmp_path: Path, picture: bytes) -> None:
    put(tmp_path, "a.png", "b.png", data=picture)
    taken = rows_of(tmp_path)["source_id"][0].as_py()
    images, outcomes = fetched(tmp_path, taken_down=[taken])
    assert (list(images), outcomes["a.png"].reason, outcomes["a.png"].status) == (["b.png"], "taken_down", "rejected")


def test_any_slice_gives_the_same_rows_in_the_same_order(tmp_path: Path, picture: bytes) -> None:
    put(tmp_path, "a.png", "c.png", data=picture)
    put(tmp_path, "b.jpg", data=b"")
    tar_file(tmp_path / "d.tar", [("1.png", picture), ("2.png", picture)])
    rows = rows_of(tmp_path)
    whole = STAGE.process({"inputs": rows}, {}).table.drop(["retrieved_at"])
    parts = [STAGE.process({"inputs": rows.slice(i, 1)}, {}).table.drop(["retrieved_at"]) for i in range(rows.num_rows)]
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()
    assert STAGE.process({"inputs": rows.slice(0, 0)}, {}).table.schema == SCHEMA


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tests.unit.pipelines.stages.test_fetch import fetched
fetched(sys.argv[2])  # everything is imported while it may be read: Python itself may lie in root's home
os.setgid(65534), os.setuid(65534)
images, outcomes = fetched(sys.argv[2])
print(sorted(images), sorted((name, o.status, o.reason) for name, o in outcomes.items()))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_file_and_a_folder_that_the_user_may_not_read(open_folder: Path, picture: bytes) -> None:
    folder = open_folder / "p"
    put(folder, "a.png", "closed.png", "closed/b.png", data=picture)
    (folder / "closed.png").chmod(0)
    (folder / "closed").chmod(0)
    expected = "['a.png'] [('closed.png', 'failed', 'unreadable'), ('closed/', 'failed', 'unreadable')]"
    try:
        if os.getuid():
            images, outcomes = fetched(folder)
            found = f"{sorted(images)} {sorted((name, o.status, o.reason) for name, o in outcomes.items())}"
        else:
            done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(ROOT), str(folder)], capture_output=True, text=True, check=False,
                                  timeout=60, cwd="/", env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
            found = done.stdout.strip() or done.stderr
    finally:
        (folder / "closed").chmod(0o755)
    assert found == expected
