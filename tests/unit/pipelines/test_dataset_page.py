"""The page of a dataset: thresholds stand where the selection put them, pictures lie on the right side, nothing is invented."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from infra import gc, versions
from infra.dataset import Dataset, NoSuchTable, Snapshot, hash_config
from infra.ledger import Ledger, Outcome
from pipelines import corpus_facts
from pipelines.page.build import MOST_BYTES, build
from pipelines.page.dataset import card, measure
from pipelines.page.dataset.collect import collect, origin, removed, shares, takedowns, told_sample
from pipelines.page.dataset.content import DatasetPage, Limit, Share
from pipelines.page.dataset.histogram import MEANINGS, describe
from pipelines.page.dataset.said import said_twice
from pipelines.page.dataset.sample import Sample, evenly
from pipelines.page.pictures import embed_detail
from pipelines.page.reading import AsItWas
from pipelines.recipes.curate import tiny as curate_tiny
from pipelines.recipes.report import DatasetReportConfig
from pipelines.stages.scores import Scores
from pipelines.stages.selection import Selection
from tests.helpers import IMAGES, commit_table, image_row, photographs, shrunk
from tests.unit.pipelines.page_workspace import HOSTILE
from tests.unit.pipelines.test_page import Checker

PER_SHARD = 4


def rows_of(count: int) -> list[dict[str, object]]:
    """Photographs, one of them too small, one there twice."""
    photos = photographs(count)
    found = [image_row(shrunk(path, 128 if n == 1 else 400), path.name) for n, path in enumerate(photos)]
    twice = image_row(shrunk(photos[3], 400), f"copy of {photos[3].name}")
    return [{**row, "source_id": hash_config(row["source_id"]) * 2} for row in [*found, twice]]


def shards_of(rows: list[dict[str, object]]) -> list[pa.Table]:
    return [pa.Table.from_pylist(rows[low : low + PER_SHARD], schema=IMAGES) for low in range(0, len(rows), PER_SHARD)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ingested, measured, selected and captioned by the stages themselves, without a cluster."""
    rows = rows_of(9)
    made = Dataset(str(tmp_path_factory.mktemp("dataset")))
    columns = ("source_id", "licence", "source_url")
    inputs = [
        {**{name: row[name] for name in columns}, "position": f"a/{row['source_url']}", "address": "https://photos.example/x"}
        for row in rows
    ]
    commit_table(made, "inputs", [pa.Table.from_pylist(inputs)])
    images = commit_table(made, "images", shards_of(rows))
    stage = Scores(max_pixels=10**8)
    measured = [stage.process({"images": made.read(ref)}, {}).table for ref in images.shards.values()]
    select(made, commit_table(made, "scores", measured))
    said = [{"image_id": row["image_id"], "caption": HOSTILE, "engine": "facts", "model": "facts", "clip_tokens": 90} for row in rows]
    commit_table(made, "captions", [pa.Table.from_pylist(said)])
    return made


def select(dataset: Dataset, scores: Snapshot) -> None:
    rule = curate_tiny().rule
    facts, stage = corpus_facts.corpus_facts(dataset, scores, rule), Selection(rule=rule)
    refs = []
    for shard, ref in scores.shards.items():
        result = stage.process({"scores": dataset.read(ref)}, facts.params(shard))
        total = result.table.num_rows
        ledger = Ledger.of(total, total - len(result.outcomes), result.outcomes)
        refs.append(
            dataset.commit(
                table="selections",
                version="1",
                shard=shard,
                key=shard,
                data=result.table,
                outcomes=result.outcomes,
                ledger=ledger,
                inputs={},
                stage_version=1,
                timings={"total_s": 2.0, "read_s": 0.5},
            )
        )
    from pipelines.runtime.stage import result_config

    dataset.publish("selections", "1", refs, result_config(stage))


@pytest.fixture(scope="module")
def page(dataset: Dataset) -> DatasetPage:
    return collect(DatasetReportConfig(input=dataset.store.url, output="unused", title="a <corpus>", price_per_hour=3.6))


def test_it_is_whole_and_needs_nothing_else(page: DatasetPage) -> None:
    text, checker = build(page), Checker()
    checker.feed(text)
    assert checker.open == []
    assert {"flow", "measures", "sheets", "duplicates", "captions", "origin", "work", "versions"} <= set(checker.ids)
    assert all(address.startswith("data:image/jpeg;base64,") for address in checker.addresses)
    assert checker.scripts == 1, "nobody's caption becomes a script"
    assert "a &lt;corpus&gt;" in text
    assert len(text.encode()) < MOST_BYTES


def test_thresholds_are_those_of_the_selection(page: DatasetPage, dataset: Dataset) -> None:
    rule = curate_tiny().rule
    facts = corpus_facts.corpus_facts(dataset, dataset.snapshot("scores"), rule)
    found = {one.name: one.limits[0] for one in page.measures if one.limits}
    short_side = Limit(reason="too_small", value=rule.min_short_side, side="min")
    assert replace(found["short_side"], origin="", flags="") == short_side
    assert found["short_side"].flags == "--set rule.min_short_side=256"
    assert {name: limit.value for name, limit in found.items() if name != "short_side"} == pytest.approx(facts.limits, rel=5e-3)
    for one in page.measures:
        assert sum(one.kept) + sum(one.rejected) + sum(one.others) <= 10
        assert len(one.edges) == len(one.kept) + 1
    short = next(one for one in page.measures if one.name == "short_side")
    assert [shown.kept for shown in short.near][:1] == [False], "the smallest picture lies on the wrong side"
    assert "too_small below 256" in describe(short)
    assert {one.name for one in page.measures} <= set(MEANINGS), "a measure is said in words too"


def test_fates_groups_and_shares(page: DatasetPage, dataset: Dataset) -> None:
    ledger = dataset.snapshot("selections").ledger
    assert {sheet.title: sheet.count for sheet in page.sheets} == {"kept": ledger.accepted, **ledger.rejected}
    assert [(group.winner is not None, len(group.losers)) for group in page.groups] == [(True, 1)]
    assert [(one.label, one.count) for one in page.licences] == [("CC0-1.0", 10)]
    assert page.captions is not None
    assert page.captions.engines[0].label == "facts"
    assert page.captions.twice.groups[0].count == 10, "ten times the same"
    assert page.captions.tokens is not None
    [work] = page.work
    assert (work.rows, work.shards, work.worker_s, work.rows_per_worker_s) == (10, 3, 6.0, pytest.approx(10 / 6))
    assert ">0.6<" in build(page), "6 s at 3.6 an hour for ten rows"


def test_what_is_said_twice_is_found_in_the_whole_table(tmp_path: Path) -> None:
    made = Dataset(str(tmp_path))
    said = [["A calm lake under a red sky with a boat on it."], [f"Number {word} stands alone." for word in ("one", "two")],
            ["A calm lake, under a red sky, with a boat on it!", "A dog and a cat on a sofa."]]
    commit_table(made, "captions", [pa.table({"caption": shard}) for shard in said])
    whole, part = said_twice(made, 5), said_twice(made, 2)
    assert (whole.near, whole.compared) == (2, 5)
    assert [(one.label, one.count) for one in whole.groups] == [(said[0][0], 2)]
    assert (part.near, part.groups, part.compared) == (0, [], 1)


def test_what_was_removed_is_named(page: DatasetPage) -> None:
    fates = {"a": {"reason": "contaminated", "value": "DIV2K/0801.png"}, "b": {"reason": "taken_down", "value": ""},
             "c": {"reason": "taken_down", "value": ""}, "d": {"reason": "too_small", "value": "12"}}
    found = removed(cast(Sample, SimpleNamespace(fates=fates)))
    assert [(one.label, one.count) for one in found] == [("taken_down", 2), ("contaminated: DIV2K/0801.png", 1)]
    text = build(replace(page, removed=found))
    assert "DIV2K/0801.png" in text
    assert "taken_down" in text


def test_a_large_dataset_is_sampled_and_says_so(dataset: Dataset) -> None:
    config = DatasetReportConfig(input=dataset.store.url, output="unused", statistics_shards=2, picture_shards=1)
    page = collect(config)
    assert "come from 2 of 3 shards" in page.sample
    assert dict(page.figures)["read"] == "10", "counts are whole"
    assert max(sum(one.kept) + sum(one.rejected) + sum(one.others) for one in page.measures) <= 2 * PER_SHARD
    assert evenly([str(n) for n in range(10)], 3) == ["0", "3", "6"]
    assert len(Sample(dataset, statistics=2, pictures=1).images) == PER_SHARD


def test_the_card_names_files_and_fields(page: DatasetPage, dataset: Dataset) -> None:
    made = json.loads(json.dumps(card.croissant(dataset, page)))
    files = {one["@id"]: one for one in made["distribution"]}
    assert files["images-files"]["includes"] == [ref.path for ref in dataset.snapshot("images").shards.values()]
    fields = {field["@id"]: field["dataType"] for records in made["recordSet"] for field in records["field"]}
    assert fields["images/bytes"] == "sc:ImageObject"
    assert fields["selections/accepted"] == "sc:Boolean"
    sources = {field["source"]["fileSet"]["@id"] for records in made["recordSet"] for field in records["field"]}
    assert sources <= set(files), "every field comes from files that are listed"


def test_a_card_above_a_local_dataset_names_files_from_there(page: DatasetPage, dataset: Dataset) -> None:
    folder = Path(dataset.store.url)
    made = card.croissant(dataset, page, folder.parent)
    for one in made["distribution"]:
        assert "containedIn" not in one, "readers look beside the card"
        assert all((folder.parent / path).is_file() for path in one["includes"])
    assert card.croissant(dataset, page, folder / "elsewhere")["distribution"][0]["@id"] == card.FOLDER
    assert made["version"].startswith("1.0.0+")


def test_takedowns_are_named_with_their_reason_and_all_that_shows_a_test_set(page: DatasetPage, dataset: Dataset, tmp_path: Path) -> None:
    other = Dataset(str(tmp_path))
    other.add_takedown([*(f"{n:064x}" for n in range(9)), "https://x.org/<b>"], "asked by <i>her</i>")
    [told] = takedowns(other)
    assert (told.count, told.some[0], told.why) == (10, "https://x.org/<b>", "asked by <i>her</i>")
    text = build(replace(page, takedowns=[told], removed=[Share(label=f"contaminated: set/{n}.png", count=1) for n in range(40)]))
    assert "https://x.org/&lt;b&gt;" in text
    assert "asked by &lt;i&gt;her&lt;/i&gt;" in text
    assert "28 more" in text
    assert "contaminated: set/39.png" in text


def test_a_threshold_says_where_it_comes_from_and_what_moves_it(page: DatasetPage) -> None:
    found = {one.name: one for one in page.measures if one.limits}
    assert "percentile 5 of the corpus, between 4 and 15" in found["sharpness"].limits[0].origin
    moved = "--set rule.sharpness.percentile=5 --set rule.sharpness.at_least=4 --set rule.sharpness.at_most=15"
    assert found["sharpness"].limits[0].flags == moved
    assert {name: one.magnified for name, one in found.items()} == {"short_side": False, "flatness": False, "sharpness": True}
    assert {(shown.picture.width, shown.picture.height) for shown in found["sharpness"].near} == {(128, 128)}, "in their own pixels"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (128, 128), (129, 400)])
def test_a_detail_of_any_size(size: tuple[int, int]) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[-1, -2:] = 255
    found = embed_detail(rgb, "x")
    assert (found.height, found.width) == (size if 1 in size else tuple(min(side, 128) for side in size)), "of a line: the whole"


def test_a_selection_that_is_older_than_the_images_is_told(dataset: Dataset, page: DatasetPage, tmp_path: Path) -> None:
    assert "older" not in page.sample
    shutil.copytree(dataset.store.url, tmp_path / "ds")
    made = Dataset(str(tmp_path / "ds"))
    gc.take_down(made, frozenset([made.read(made.snapshot("images").shards["00000"])["image_id"][0].as_py()]), "asked for")
    assert "The selection is older than the images (10 rows of 9)" in told_sample(Sample(made, statistics=9, pictures=9))


def test_a_page_shows_one_state_while_a_job_publishes_another(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(dataset.store.url, tmp_path / "ds")
    made = AsItWas(str(tmp_path / "ds"))
    first, loaded = made.snapshot("selections"), []
    select(Dataset(str(tmp_path / "ds")), replace(made.snapshot("scores"), shards={}))
    monkeypatch.setattr(Dataset, "snapshot", lambda self, table, version=None: loaded.append(table))
    assert made.snapshot("selections") is first
    assert loaded == [], "of 40,000 shards a snapshot takes a second to read"


def test_odd_values() -> None:
    values, reasons = np.array([1.0, np.nan, 1.0, 1e4, 3.0]), np.array(["", "", "low", "", "other"], dtype=object)
    found = measure.distribution("x", values, reasons, [Limit(reason="low", value=2.0, side="min")])
    assert (sum(found.kept), sum(found.rejected), sum(found.others), found.logarithmic) == (2, 1, 1, True)
    assert measure.distribution("flat", np.array([5.0, 5.0]), reasons[:2]).edges[0] < 5
    limit = Limit(reason="low", value=2.0, side="min")
    assert measure.next_to(values, reasons, list("abcde"), [limit], "abcde", count=1) == ["a", "d"], "e went for another reason"
    assert measure.next_to(values, reasons, list("abcde"), [limit], "abce", count=1) == ["a", "e"], "but nothing else is there"
    assert origin("s3://bucket/x") == "s3://bucket"
    assert origin("/home/x") == "local files"

    def many() -> Iterator[str]:
        yield from (str(n % 20) for n in range(40))

    assert shares(many())[-1].label == "8 others"


def test_a_folder_without_a_dataset_teaches(tmp_path: Path) -> None:
    with pytest.raises(NoSuchTable, match=r"run pipelines/ingest\.py first"):
        collect(DatasetReportConfig(input=str(tmp_path), output="unused"))


def test_rejected_captions_stand_beside_their_pictures(dataset: Dataset, tmp_path: Path) -> None:
    copied = Dataset(str(tmp_path / "copy"))
    tables = {table: dataset.snapshot(table) for table in ("inputs", "images", "scores", "selections")}
    list(versions.copy(dataset, copied, tables))
    [first, *_] = tables["images"].shards
    source_id = copied.read(tables["images"].shards[first], ["source_id"])["source_id"][0].as_py()
    outcomes = [Outcome(source_id, "rejected", "refusal", HOSTILE), Outcome("other", "rejected", "not_selected", "")]
    said = [("A wooden house by a lake, with wooden boats.", 14), ("This photograph shows a wooden chair.", 90)]
    data = pa.Table.from_pylist([{"image_id": "i", "caption": text, "engine": "e", "model": "", "clip_tokens": n} for text, n in said])
    ref = copied.commit(
        table="captions",
        version="1",
        shard=first,
        key="k",
        data=data,
        outcomes=outcomes,
        ledger=Ledger.of(4, 2, outcomes),
        inputs={},
        stage_version=1,
    )
    copied.publish("captions", "1", [ref], {})
    found = collect(DatasetReportConfig(input=copied.store.url, output="unused")).captions
    assert found is not None
    assert [(share.label, share.count) for share in found.rejected] == [("refusal", 1)]
    assert [one.note for one in found.refused] == [f"refusal: {HOSTILE}"]
    assert found.words[0] == Share(label="wooden", count=2), "captions that have it; not how often they say it"
    assert not {"this", "photograph", "with"} & {one.label for one in found.words}
    assert found.tokens is not None
    assert (sum(found.tokens.kept), sum(found.tokens.rejected)) == (1, 1), "one is longer than CLIP's window"
    assert (found.twice.near, found.twice.compared) == (0, 2)


def test_only_ingested(tmp_path: Path) -> None:
    made = Dataset(str(tmp_path))
    rows = rows_of(4)[:3]
    commit_table(
        made,
        "inputs",
        [
            pa.Table.from_pylist(
                [{"source_id": row["source_id"], "position": "p", "address": "/x", "licence": None, "source_url": ""} for row in rows]
            )
        ],
    )
    version = hash_config("images")
    failed = [Outcome("gone", "failed", "vanished", "it was there before")]
    [table] = shards_of(rows)
    ref = made.commit(
        table="images",
        version=version,
        shard="00000",
        key="k",
        data=table,
        outcomes=failed,
        ledger=Ledger.of(4, 3, failed),
        inputs={},
        stage_version=1,
    )
    made.publish("images", version, [ref], {})
    page = collect(DatasetReportConfig(input=str(tmp_path), output="unused"))
    assert [(sheet.title, sheet.messages) for sheet in page.sheets] == [("kept", []), ("vanished", ["it was there before"])]
    assert "Nothing was measured yet" in build(page)
