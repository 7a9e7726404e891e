"""Tags stay what they were, differences count every row once, copies are equal and go on after a kill."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from infra import gc, versions
from infra.dataset import AlteredFile, Dataset, Snapshot, hash_config
from infra.ledger import Ledger, Outcome
from infra.storage import StorageError
from infra.versions import Difference, NoSuchTag

SCHEMA = pa.schema([("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary())])


def images(dataset: Dataset, shards: list[list[str]], version: str = "1", failed: str = "") -> Snapshot:
    refs = []
    for n, ids in enumerate(shards):
        rows = [{"image_id": one * 64, "source_id": one * 32, "bytes": one.encode()} for one in ids]
        outcomes = [Outcome(failed * 32, "failed", "truncated", "cut")] if failed and n == 0 else []
        refs.append(
            dataset.commit(
                table="images", version=version, shard=f"{n:05d}", key=hash_config([version, ids]), data=pa.Table.from_pylist(rows, SCHEMA),
                outcomes=outcomes, ledger=Ledger.of(len(rows) + len(outcomes), len(rows), outcomes), inputs={}, stage_version=1,
            )
        )
    return dataset.publish("images", version, refs, {})


def selections(dataset: Dataset, fates: dict[str, str], version: str) -> Snapshot:
    rows = [{"source_id": one * 32, "accepted": not reason, "reason": reason} for one, reason in fates.items()]
    outcomes = [Outcome(one * 32, "rejected", reason, "") for one, reason in fates.items() if reason]
    ledger = Ledger.of(len(rows), len(rows) - len(outcomes), outcomes)
    ref = dataset.commit(
        table="selections", version=version, shard="00000", key=version, data=pa.Table.from_pylist(rows), outcomes=outcomes, ledger=ledger,
        inputs={}, stage_version=1,
    )  # fmt: skip
    return dataset.publish("selections", version, [ref], {})


def test_a_tag_stays_what_it_was_while_the_dataset_grows(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    first = images(dataset, [["a", "b"], ["c"]])
    made = versions.tag(dataset, "one", "before the rest came")
    images(dataset, [["a", "b"], ["c"], ["d"]])
    assert versions.names(dataset) == ["one"]
    assert versions.read(dataset, "one") == made
    assert versions.state(dataset, "images", "one").digest == first.digest
    assert versions.state(dataset, "images", "").rows == 4
    with pytest.raises(ValueError, match="a tag never moves"):
        versions.tag(dataset, "one")
    with pytest.raises(NoSuchTag, match="no tag 'two'; there are: one"):
        versions.read(dataset, "two")
    with pytest.raises(NoSuchTag, match="'three' is neither a tag nor a version of table 'images'; known: one, 1"):
        versions.state(dataset, "images", "three")
    with pytest.raises(ValueError, match="a name of letters"):
        versions.tag(dataset, "../x")


def test_a_takedown_reaches_tags_and_is_told(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images(dataset, [["a", "b"], ["c"]])
    versions.tag(dataset, "one")
    gc.take_down(dataset, frozenset({"a" * 64}), "asked for", grace=timedelta(0))
    found = versions.read(dataset, "one")
    assert found.lost == {"images": 1}
    [first, second] = found.tables["images"].shards.values()
    assert dataset.read(first).column("image_id").to_pylist() == ["b" * 64]
    assert second.rows == 1


def test_a_difference_counts_every_row_once(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    old = selections(dataset, {"a": "", "b": "too_blurred", "c": "", "d": "too_small"}, "1")
    new = selections(dataset, {"a": "", "b": "", "c": "too_flat", "e": ""}, "2")
    found = versions.diff(dataset, old, new)
    kept, absent = versions.KEPT, versions.ABSENT
    assert found.same == 1
    assert dict(found.counts) == {("too_blurred", kept): 1, (kept, "too_flat"): 1, ("too_small", absent): 1, (absent, kept): 1}
    assert found.examples[kept, "too_flat"] == ["c" * 32]
    assert versions.diff(dataset, new, new) == Difference(same=4)
    assert "kept -> too_flat" in "\n".join(versions.describe(found))
    images(dataset, [["a"]], "1", failed="b")
    rows = versions.diff(dataset, images(dataset, [["a"]], "1", failed="b"), images(dataset, [["a", "b"]], "2"))
    assert dict(rows.counts) == {("truncated", kept): 1}


def test_a_copy_is_equal_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    source, target = Dataset(str(tmp_path / "a")), Dataset(str(tmp_path / "b"))
    snapshot = images(source, [["a", "b"], ["c"], ["d"]], failed="e")
    source.add_takedown(["f" * 64], "asked for")
    tables = {"images": snapshot}
    steps = versions.copy(source, target, tables)
    assert next(steps)[:2] == (1, 3)
    del steps  # killed; and the file that was being written was cut off
    cut = list(snapshot.shards.values())[1]
    target.store.put(cut.path, b"PAR1")
    assert not target.has("images"), "nothing is read before all is there"
    assert [done for done, _, _ in versions.copy(source, target, tables)] == [1, 2, 3]
    copied = target.snapshot("images")
    assert copied == snapshot
    assert [target.read(ref).equals(source.read(ref)) for ref in copied.shards.values()] == [True] * 3
    assert [target.outcomes(ref) for ref in copied.shards.values()] == [source.outcomes(ref) for ref in snapshot.shards.values()]
    assert target.takedowns() == source.takedowns()
    assert list(versions.copy(source, target, tables))[-1] == (3, 3, 0), "done: nothing is copied again"


def test_what_was_altered_is_not_copied(tmp_path: Path) -> None:
    source, target = Dataset(str(tmp_path / "a")), Dataset(str(tmp_path / "b"))
    snapshot = images(source, [["a"]])
    (tmp_path / "a" / snapshot.shards["00000"].path).write_bytes(b"other")
    with pytest.raises(AlteredFile, match="not copied"):
        list(versions.copy(source, target, {"images": snapshot}))
    with pytest.raises(StorageError, match="no published table"):
        versions.tag(target, "one")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import versions as entry

    dataset = Dataset(str(tmp_path / "a"))
    selections(dataset, {"a": "", "b": "too_blurred"}, "1")
    url = ["--input", str(tmp_path / "a")]
    assert entry.main(["--recipe", "tag", *url, "--name", "one"]) == 0
    selections(dataset, {"a": "", "b": ""}, "2")
    assert entry.main(["--recipe", "diff", *url, "--before", "one"]) == 0
    assert "too_blurred -> kept" in capsys.readouterr().out
    assert entry.main(["--recipe", "copy", *url, "--output", str(tmp_path / "b"), "--name", "one"]) == 0
    assert Dataset(str(tmp_path / "b")).snapshot("selections").version == "1"
    assert entry.main([*url]) == 0
    assert "tag one: " in capsys.readouterr().out
    assert entry.main(["--recipe", "diff", *url]) == 2
    assert "--before is wanted: a tag (one)" in capsys.readouterr().err
    assert entry.main(["--recipe", "copy", *url, "--output", str(tmp_path / "a")]) == 2


def test_a_tag_of_shards_that_were_done_again_loses_its_own_rows_only(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images(dataset, [["a", "b"], ["c"]])
    versions.tag(dataset, "one")
    images(dataset, [["a", "b", "d"], ["c"]])  # the same version and shard: another content
    gc.take_down(dataset, frozenset({"a" * 64}), "asked for", grace=timedelta(0))
    gc.take_down(dataset, frozenset({"c" * 64}), "asked for", grace=timedelta(0))
    found = versions.read(dataset, "one")
    assert found.lost == {"images": 2}
    assert [dataset.read(ref).column("image_id").to_pylist() for ref in found.tables["images"].shards.values()] == [["b" * 64], []]
    now = dataset.snapshot("images")
    assert [dataset.read(ref).column("image_id").to_pylist() for ref in now.shards.values()] == [["b" * 64, "d" * 64], []]
    assert not any(b"a" * 64 in path.read_bytes() for path in tmp_path.rglob("images/*.parquet"))


def test_a_copy_takes_the_tag_and_the_tars_along(tmp_path: Path) -> None:
    source, target = Dataset(str(tmp_path / "a")), Dataset(str(tmp_path / "b"))
    tar = "exports/00000.0123456789abcdef.tar"
    source.store.put(tar, b"tar")
    table = pa.table({"image_id": ["a"], "source_id": ["b"], "tar": [tar]})
    ref = source.commit(table="exports", version="1", shard="00000", key="k", data=table, outcomes=[], ledger=Ledger(1, 1), inputs={},
                        stage_version=1)
    source.publish("exports", "1", [ref], {})
    made = versions.tag(source, "one")
    assert list(versions.copy(source, target, made.tables, "one"))
    assert target.store.read(tar) == b"tar"
    assert versions.read(target, "one") == made
    gc.take_down(source, frozenset({"a"}), "asked for")
    assert versions.read(source, "one").lost == {"exports": 1}
    other = Dataset(str(tmp_path / "c"))
    images(other, [["a"]])
    versions.tag(other, "one")
    with pytest.raises(ValueError, match="names another state"):
        list(versions.copy(source, other, made.tables, "one"))


def test_what_the_copy_took_down_does_not_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import versions as entry

    source, target = Dataset(str(tmp_path / "a")), Dataset(str(tmp_path / "b"))
    images(source, [["a", "b"], ["c"]])
    arguments = ["--recipe", "copy", "--input", source.store.url, "--output", target.store.url]
    assert entry.main(arguments) == 0
    gc.take_down(target, frozenset({"a" * 64}), "asked for", grace=timedelta(0))
    images(source, [["a", "b"], ["c"], ["d"]])
    assert entry.main(arguments) == 0
    assert [target.read(ref).num_rows for ref in target.snapshot("images").shards.values()] == [1, 1, 1]
    assert not any(b"a" * 64 in path.read_bytes() for path in (tmp_path / "b").rglob("images/*.parquet"))
    assert entry.main(["--input", target.store.url]) == 0
    assert "images       1 versions, current 1, 3 rows; version 1 without 1 rows that were taken down" in capsys.readouterr().out
