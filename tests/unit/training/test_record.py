"""The record of a run: fixed when it begins, the same command continues, another configuration does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.dataset import Dataset, NoSuchTable
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
    with pytest.raises(ValueError, match=r"network was 'tiny', now 'sdxl_paper'; optimizer.lr was 0.001, now 1.0"):
        record.begin_or_continue(config.output, record.survey(other, captions=False))
    free = replace(config, engine=replace(config.engine, kind="plain"), launch=replace(config.launch, workers=4))
    record.begin_or_continue(config.output, record.survey(free, captions=False))


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
