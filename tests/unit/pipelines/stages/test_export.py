"""Tars: the same bytes for the same rows, what is in them, and what stays out."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.stages.export import SCHEMA, Export, tar_of
from tests.helpers import IMAGES, image_row, photographs, shrunk


def rows() -> list[dict[str, Any]]:
    return [image_row(shrunk(path, 48), path.name) for path in photographs(4)]


def tables(images: list[dict[str, Any]], rejected: dict[int, str] | None = None, captioned: bool = True) -> dict[str, pa.Table]:
    chosen = [{"image_id": row["image_id"], "source_id": row["source_id"], "accepted": i not in (rejected or {}),
               "reason": (rejected or {}).get(i, ""), "value": ""} for i, row in enumerate(images)]
    found = {"images": pa.Table.from_pylist(images, schema=IMAGES), "selections": pa.Table.from_pylist(chosen)}
    if captioned:
        said = [{"image_id": row["image_id"], "caption": f"caption {i} é"} for i, row in enumerate(images[:3])]
        found["captions"] = pa.Table.from_pylist(said)
    return found


def exported(folder: Path, given: dict[str, pa.Table], require_caption: bool = True,
             **params: Any) -> tuple[list[dict[str, Any]], list[str]]:
    result = Export(require_caption=require_caption, output_url=str(folder)).process(given, {"shard": "00000", **params})
    assert result.table.schema == SCHEMA
    return result.table.to_pylist(), [o.reason for o in result.outcomes]


def test_a_picture_is_its_bytes_its_caption_and_its_origin(tmp_path: Path) -> None:
    images = rows()
    made, outcomes = exported(tmp_path, tables(images))
    assert outcomes == ["no_caption"]
    (name,) = {row["tar"] for row in made}
    data = (tmp_path / name).read_bytes()
    assert {row["tar_sha256"] for row in made} == {hashlib.sha256(data).hexdigest()}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        assert names == sorted(names)
        assert len(names) == 9
        assert {member.mtime for member in tar} == {0}
        for i, row in enumerate(images[:3]):
            stem = row["image_id"]
            assert tar.extractfile(f"{stem}.png").read() == row["bytes"]  # type: ignore[union-attr]
            assert tar.extractfile(f"{stem}.txt").read().decode() == f"caption {i} é"  # type: ignore[union-attr]
            origin = json.loads(tar.extractfile(f"{stem}.json").read())  # type: ignore[union-attr]
            assert (origin["licence"], origin["source_id"]) == ("CC0-1.0", row["source_id"])


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    first, _ = exported(tmp_path, tables(rows()))
    second, _ = exported(tmp_path, tables(rows()))
    assert first[0]["tar"] != second[0]["tar"]  # an attempt has its own name
    assert first[0]["tar_sha256"] == second[0]["tar_sha256"]
    assert tar_of([("b", b"2"), ("a", b"1")]) == tar_of([("a", b"1"), ("b", b"2")])


def test_what_stays_out_has_a_reason(tmp_path: Path) -> None:
    images = rows()
    made, outcomes = exported(tmp_path, tables(images, {0: "too_blurred"}), taken_down=[images[1]["source_id"]])
    assert ([row["image_id"] for row in made], outcomes) == ([images[2]["image_id"]], ["too_blurred", "taken_down", "no_caption"])
    made, outcomes = exported(tmp_path, tables(images, captioned=False), require_caption=False)
    assert (len(made), outcomes, {row["captioned"] for row in made}) == (4, [], {False})
    given = tables(images)
    given["selections"] = given["selections"].slice(1)
    assert exported(tmp_path, given)[1] == ["not_scored", "no_caption"]


def test_nothing_to_export_writes_no_tar(tmp_path: Path) -> None:
    made, outcomes = exported(tmp_path / "out", tables(rows(), dict.fromkeys(range(4), "too_small")))
    assert (made, len(outcomes)) == ([], 4)
    assert not (tmp_path / "out").exists()
