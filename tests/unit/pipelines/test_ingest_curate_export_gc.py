"""The four jobs through their command lines, with the workers in this process: what is done again when something changes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.dataset import Dataset
from infra.lease import lease
from pipelines import curate, export, gc, ingest
from tests.helpers import photographs, shrunk

SIZE = ["--set", "rule.min_short_side=40"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photographs(7):
        (folder / f"{path.stem}.png").write_bytes(shrunk(path, 96))
    return folder


def run(job: Any, *args: object) -> None:
    assert job.main([str(arg) for arg in args]) == 0


def ingested(photos: Path, corpus: Path, *args: object) -> Dataset:
    run(ingest, "--input", photos, "--output", corpus, "--set", "shard.rows=3", *args)
    return Dataset(str(corpus))


def curated(corpus: Path, *args: object) -> Dataset:
    run(curate, "--input", corpus, *SIZE, *args)
    return Dataset(str(corpus))


def table(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    return [row for ref in dataset.snapshot(name).shards.values() for row in dataset.read(ref).to_pylist()]


def accepted(dataset: Dataset) -> dict[str, bool]:
    names = {row["source_id"]: row["position"] for row in table(dataset, "inputs")}
    return {names[row["source_id"]]: row["accepted"] for row in table(dataset, "selections")}


def test_nothing_changed_nothing_is_done(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus = tmp_path / "c"
    ingested(photos, corpus)
    before = curated(corpus).snapshot("selections")
    assert len(here) == 9
    here.clear()
    ingested(photos, corpus)
    assert curated(corpus).snapshot("selections") == before
    assert here == []


def test_a_changed_threshold_measures_nothing_again(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus = tmp_path / "c"
    ingested(photos, corpus)
    first = curated(corpus).snapshot("selections")
    here.clear()
    dataset = curated(corpus, "--set", "rule.min_short_side=1000")
    assert {one.split()[0] for one in here} == {"selection"}
    assert dataset.snapshot("selections").ledger.rejected == {"too_small": 7}
    assert dataset.snapshot("selections", first.version) == first
    here.clear()
    assert curated(corpus).snapshot("selections").digest == first.digest
    assert here == []


def test_more_photographs_make_new_shards_and_touch_old_ones_only_where_they_matter(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus = tmp_path / "c"
    bounds = ["--set", "rule.sharpness.percentile=0", "--set", "rule.sharpness.at_most=4", "--set", "rule.flatness.percentile=100",
              "--set", "rule.flatness.at_least=0.7"]  # the thresholds stand, whatever comes
    ingested(photos, corpus)
    curated(corpus, *bounds)
    here.clear()
    (photos / "zz_new.png").write_bytes(shrunk(photographs(8)[7], 96))
    ingested(photos, corpus)
    dataset = curated(corpus, *bounds)
    assert here == ["fetch 00003", "scores 00003", "selection 00003"]
    here.clear()
    first = sorted(photos.iterdir())[0]
    copy = photos / "zzz_larger_copy.png"
    copy.write_bytes(shrunk(next(path for path in photographs(7) if path.stem == first.stem), 192))
    ingested(photos, corpus)
    dataset = curated(corpus, *bounds)
    assert here == ["fetch 00004", "scores 00004", "selection 00000", "selection 00004"]  # shard 0 lost its copy to the larger one
    assert accepted(dataset)[first.name] is False
    assert accepted(dataset)[copy.name] is True


def test_what_failed_is_asked_for_again_in_a_new_shard(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus = tmp_path / "c"
    good = photos / f"{photographs(1)[0].stem}.png"
    data = good.read_bytes()
    good.write_bytes(b"")
    (photos / "never.jpg").write_bytes(b"no image")
    dataset = ingested(photos, corpus)
    assert dataset.snapshot("images").ledger.failed == {"empty": 1, "not_an_image": 1}
    good.write_bytes(data)
    here.clear()
    ingested(photos, corpus)
    assert here == []  # nobody asked
    ingested(photos, corpus, "--set", "retry_failed=true")
    assert here == ["fetch 00003"]
    assert [(row["position"], row["attempt"]) for row in table(dataset, "inputs")][8:] == [(good.name, 1), ("never.jpg", 1)]
    sources = [row["source_id"] for row in table(dataset, "images")]
    assert len(sources) == len(set(sources)) == 7
    here.clear()
    ingested(photos, corpus, "--set", "retry_failed=true")
    assert [row["position"] for row in table(dataset, "inputs")][10:] == ["never.jpg"]  # what succeeded is not asked for again


def test_a_takedown_reaches_selection_export_and_the_bytes(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus, out = tmp_path / "c", tmp_path / "e"
    no_captions = ["--set", "captioned=false"]
    ingested(photos, corpus)
    dataset = curated(corpus)
    run(export, "--input", corpus, "--output", out, *no_captions)
    victim = next(row for row in table(dataset, "selections") if row["accepted"])
    data = next(row["bytes"] for row in table(dataset, "images") if row["image_id"] == victim["image_id"])
    dataset.add_takedown([victim["image_id"]], "asked for by the author")
    here.clear()
    run(export, "--input", corpus, "--output", out, *no_captions)  # at once, before anything else is run
    assert here == ["export 00000"]
    assert victim["image_id"] not in {row["image_id"] for row in table(Dataset(str(out)), "exports")}
    run(gc, "--input", corpus, "--dry-run")
    run(gc, "--input", corpus, "--set", "grace_h=0")
    run(gc, "--input", out, "--set", "grace_h=0", "--set", f"takedowns_of={corpus}")
    assert not any(data in path.read_bytes() for folder in (corpus, out) for path in folder.rglob("*") if path.is_file())
    here.clear()
    ingested(photos, corpus)
    assert here == []  # the source still holds it: it is not fetched again
    curated(corpus)
    assert "scores 00001" not in here
    run(export, "--input", corpus, "--output", out, *no_captions)
    exported = {row["image_id"] for row in table(Dataset(str(out)), "exports")}
    assert exported == {row["image_id"] for row in table(dataset, "selections") if row["accepted"]}
    assert victim["image_id"] not in exported


def test_an_address_is_taken_down_with_all_that_came_or_will_come_from_there(photos: Path, tmp_path: Path, here: list[str],
                                                                             capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = sorted(path.name for path in photos.iterdir())
    (photos / "photos.csv").write_text(f"file,source_url\n{first},https://example.org/a\n{second},https://example.org/b\n")
    corpus = tmp_path / "c"
    dataset = ingested(photos, corpus)
    data = (photos / first).read_bytes()
    run(gc, "--input", corpus, "--set", 'take_down=["https://user:hunter2@example.org/a", "https://example.org/never?token=hunter2"]')
    assert "nothing here came from https://example.org/never?token=REDACTED: it stays on the list" in capsys.readouterr().out
    assert not any(data in path.read_bytes() or b"hunter2" in path.read_bytes() for path in corpus.rglob("*") if path.is_file())
    assert len(table(dataset, "images")) == 6
    later = tmp_path / "later"
    later.mkdir()
    (later / "new.png").write_bytes(shrunk(photographs(8)[7], 96))
    (later / "photos.csv").write_text("file,source_url\nnew.png,https://example.org/a\n")
    run(ingest, "--input", later, "--output", corpus)
    assert len(table(dataset, "images")) == 6
    assert dataset.snapshot("images").ledger.rejected == {"taken_down": 2}


def test_a_clock_that_went_back_changes_nothing(photos: Path, tmp_path: Path, here: list[str]) -> None:
    dataset = ingested(photos, tmp_path / "c")
    before = [curated(tmp_path / "c").snapshot(name) for name in ("inputs", "images", "scores", "selections")]
    for path in [*photos.iterdir(), *(tmp_path / "c").rglob("*")]:
        os.utime(path, (4e9, 4e9))  # all that there is was written in the year 2096
    here.clear()
    ingested(photos, tmp_path / "c")
    curated(tmp_path / "c")
    assert here == []
    assert [dataset.snapshot(name) for name in ("inputs", "images", "scores", "selections")] == before
    (photos / "more.png").write_bytes(shrunk(photographs(8)[7], 96))
    assert len(table(ingested(photos, tmp_path / "c"), "images")) == 8, "and what is new is found"


def test_a_count_that_is_not_the_expected_one_is_told(photos: Path, tmp_path: Path, here: list[str],
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    ingested(photos, tmp_path / "c", "--set", "expected_rows=7")
    assert "is the source whole" not in capsys.readouterr().out
    ingested(photos, tmp_path / "c", "--set", "expected_rows=8")
    assert "7 rows, this recipe expects about 8: is the source whole?" in capsys.readouterr().out


def test_an_export_can_be_ingested_and_gives_the_same_pictures(photos: Path, tmp_path: Path, here: list[str]) -> None:
    corpus, out, back = tmp_path / "c", tmp_path / "e", tmp_path / "b"
    (photos / "photos.csv").write_text("file,licence,attribution\n" + "".join(f"{p.name},CC0-1.0,Ada\n" for p in photos.glob("*.png")))
    ingested(photos, corpus)
    dataset = curated(corpus)
    run(export, "--input", corpus, "--output", out, "--set", "captioned=false")
    run(ingest, "--input", out / "exports", "--output", back)
    again = {row["image_id"]: row for row in table(Dataset(str(back)), "images")}
    kept = {row["image_id"] for row in table(dataset, "selections") if row["accepted"]}
    before = {row["image_id"]: row for row in table(dataset, "images") if row["image_id"] in kept}
    assert again.keys() == before.keys()
    for image_id, row in again.items():
        assert all(row[name] == before[image_id][name] for name in ("bytes", "licence", "attribution", "format", "width"))
    assert sorted((out / "exports").glob("*.tar")) in lists(out)
    run(gc, "--input", out, "--set", f'take_down=["{min(again)}"]')
    assert sorted((out / "exports").glob("*.tar")) in lists(out), "what is left is listed"


def lists(out: Path) -> list[list[Path]]:
    """What each list of tars names."""
    return [sorted(map(Path, one.read_text().split())) for one in (out / "exports").glob("*.urls.txt")]


def test_a_named_source_may_move(photos: Path, tmp_path: Path, here: list[str]) -> None:
    named = ["--set", "source_name=holiday"]
    ingested(photos, tmp_path / "c", *named)
    moved = tmp_path / "elsewhere"
    shutil.move(photos, moved)
    here.clear()
    ingested(moved, tmp_path / "c", *named)
    assert here == []
    ingested(moved, tmp_path / "c")
    assert len(here) == 3  # under its address it is another source


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(ingest, "--input", photos, "--output", tmp_path / "c", "--dry-run")
    assert "7 new rows would form 1 shards" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()
    dataset = ingested(photos, tmp_path / "c")
    before = sorted(entry.key for entry in dataset.store.list())
    run(curate, "--input", tmp_path / "c", "--dry-run")
    assert "3 pending (7 rows)" in capsys.readouterr().out
    assert sorted(entry.key for entry in dataset.store.list()) == before


@pytest.mark.parametrize(("args", "told"), [
    (["--recipe", "tinny"], "did you mean 'tiny'"), (["--set", "shard.row=3"], "did you mean 'rows'"),
    (["--set", "shard.rows=0"], "at least 1"),
    (["--input", "EMPTY"], "no file with the suffix of an image"), (["--input", "/nowhere/at/all"], "not a folder"),
    (["--output", "INSIDE"], "lies in --input"), (["--input", "EMPTY/list.jsonl"], "a table (.parquet"),
    (["--set", "sidecar=gone.csv"], "does not exist"), (["--output", "ftp://x/y"], "scheme")])
def test_ingest_refuses_before_any_work(args: list[str], told: str, photos: Path, tmp_path: Path, here: list[str],
                                        capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    args = [arg.replace("EMPTY", str(tmp_path / "empty")).replace("INSIDE", f"{photos}/c") for arg in args]
    assert ingest.main(["--input", str(photos), "--output", str(tmp_path / "c"), *args]) == 2
    assert told in capsys.readouterr().err
    assert here == []
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("job", [curate, gc])
def test_a_folder_that_is_no_dataset_is_told(job: Any, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--input", str(tmp_path)]) == 2
    assert "holds no dataset" in (error := capsys.readouterr().err) or "Run the job that writes it first" in error


def test_an_altered_shard_is_named_and_not_used(photos: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dataset = ingested(photos, tmp_path / "c")
    path = Path(dataset.store.url, dataset.snapshot("images").shards["00001"].path)
    os.chmod(path, 0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert curate.main(["--input", str(tmp_path / "c")]) == 2
    assert f"{path} was altered after its commit" in capsys.readouterr().err
    assert not dataset.has("scores")


def test_of_two_jobs_the_second_stops(photos: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(str(tmp_path / "c"))
    with lease(dataset.store, "images"):
        assert ingest.main(["--input", str(photos), "--output", str(tmp_path / "c")]) == 2
    assert "another job is at work on 'images'" in capsys.readouterr().err
    assert here == []
    assert len(table(ingested(photos, tmp_path / "c"), "images")) == 7


@pytest.mark.parametrize("job", [ingest, curate, export])
def test_the_recipe_of_the_paper_resolves(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--recipe", "paper_20m", "--show-config"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"]["workers"] == 0
