"""The record of a run: fixed when it begins, the same command continues, another configuration does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from infra import gc
from infra.dataset import Dataset, NoSuchTable
from infra.storage import StorageError
from tests.corpora import corpus
from tests.helpers import commit_table
from training import record
from training.recipes import adaptor_tiny, encoder_tiny


def test_a_corpus_that_changes_does_not_change_a_run_that_has_begun(tmp_path: Path) -> None:
    config = replace(encoder_tiny(), input=corpus(tmp_path / "c", photos=4), output=str(tmp_path / "out"))
    begun = record.begin_or_continue(config.output, record.survey(config, captions=False))
    corpus(tmp_path / "c", photos=8)
    grown = record.survey(config, captions=False)
    assert grown.digest != begun.digest
    assert record.begin_or_continue(config.output, grown).sources == begun.sources


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    config = replace(encoder_tiny(), input=corpus(tmp_path / "c", photos=4), output=str(tmp_path / "out"))
    record.begin_or_continue(config.output, record.survey(config, captions=False))
    other = replace(config, optimizer=replace(config.optimizer, lr=1.0), network="sdxl_paper")
    with pytest.raises(ValueError, match=r"network was 'tiny', now 'sdxl_paper'; optimizer.lr was 0.0001, now 1.0"):
        record.begin_or_continue(config.output, record.survey(other, captions=False))
    free = replace(config, engine=replace(config.engine, kind="plain"), launch=replace(config.launch, workers=4))
    record.begin_or_continue(config.output, record.survey(free, captions=False))


def test_weights_may_move_and_must_not_change(tmp_path: Path) -> None:
    def folder(name: str, content: bytes) -> str:
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "w.safetensors").write_bytes(content)
        return str(tmp_path / name)

    def begin(**addresses: str | None) -> record.Record:
        found = record.survey(replace(config, **addresses), captions=True)  # type: ignore[arg-type]
        return record.begin_or_continue(config.output, record.with_weights(found))

    config = replace(adaptor_tiny(), input=corpus(tmp_path / "c", photos=4), negatives_weight=0.0, output=str(tmp_path / "out"))
    begun = begin(prior=folder("a", b"sdxl"), encoder=folder("e", b"stage 1"))
    assert set(begun.weights) == {"prior", "encoder"}
    assert begin(prior=folder("moved", b"sdxl"), encoder=str(tmp_path / "e")) == begun == record.load(config.output)
    with pytest.raises(ValueError, match=r"the content of encoder was '[0-9a-f]{16}', now '[0-9a-f]{16}'"):
        begin(prior=str(tmp_path / "a"), encoder=folder("again", b"stage 1, trained again"))
    with pytest.raises(ValueError, match=r"the content of encoder was '[0-9a-f]{16}', now None"):
        begin(prior=str(tmp_path / "a"), encoder=None)
    with pytest.raises(ValueError, match=r"the content of prior was '[0-9a-f]{16}', now '[0-9a-f]{16}'"):
        begin(prior=str(tmp_path / "a" / "unet" / "w.safetensors"), encoder=str(tmp_path / "e"))


def test_steps_are_free_only_where_the_learning_rate_does_not_follow_them(tmp_path: Path) -> None:
    config = replace(encoder_tiny(), input=corpus(tmp_path / "c", photos=4), output=str(tmp_path / "out"))
    record.begin_or_continue(config.output, record.survey(config, captions=False))
    with pytest.raises(ValueError, match="steps was 80, now 90"):
        record.begin_or_continue(config.output, record.survey(replace(config, steps=90), captions=False))


@pytest.mark.parametrize(("there", "missing", "job"), [(0, "images", "ingest"), (1, "selections", "curate"), (2, "captions", "caption")])
def test_a_missing_table_names_the_job_that_writes_it(tmp_path: Path, there: int, missing: str, job: str) -> None:
    """Without a selection nothing is trained on: what was never looked at is not taken for good."""
    whole = Dataset(corpus(tmp_path / "whole", photos=1))
    part = Dataset(str(tmp_path / "part"))
    for table in ("images", "selections", "captions")[:there]:
        commit_table(part, table, [whole.read(ref) for ref in whole.snapshot(table).shards.values()])
    config = replace(adaptor_tiny(), input=part.store.url, negatives_weight=0.0)
    with pytest.raises(NoSuchTable, match=rf"photographs: .* no published table '{missing}'; .*\(python pipelines/{job}\.py\)"):
        record.survey(config, captions=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"config":', r"run\.json is no JSON .* was cut or altered: .* another --output"),
        ("{}", r"run\.json is no record of this version .*'sources'"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / record.RECORD).write_text(text)
    with pytest.raises((ValueError, StorageError), match=words):
        record.load(str(tmp_path))


def test_a_takedown_whose_bytes_were_removed_leaves_a_run_its_other_shards(tmp_path: Path) -> None:
    """`gc` commits the shard anew without the picture, and removes the commit that the run was begun with."""
    config = replace(encoder_tiny(), input=corpus(tmp_path / "c", photos=4), output=str(tmp_path / "out"))
    begun = record.begin_or_continue(config.output, record.survey(config, captions=False))
    dataset = Dataset(config.input)
    assert record.present(begun.sources) == begun.sources
    first, *others = begun.sources[0].tables["images"].values()
    gone = dataset.read(dataset.load_commits([first])[0], ["image_id"]).column("image_id")[0].as_py()
    gc.take_down(dataset, frozenset([gone]), "its owner asked", grace=timedelta(0))
    [now] = record.present(record.load(config.output).sources)
    anew, *same = now.tables["images"].values()
    assert same == others
    assert now.tables["selections"] == begun.sources[0].tables["selections"]
    rows = dataset.read(dataset.load_commits([anew])[0], ["image_id"]).column("image_id").to_pylist()
    assert gone not in rows
    assert len(rows) == 2
    dataset.store.delete(anew)
    dataset.publish("images", anew.split("/")[2], [], {})
    with pytest.raises(ValueError, match=r"which the run was begun with, is gone, and nothing stands in its place"):
        record.present(record.load(config.output).sources)
