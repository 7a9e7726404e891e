"""From positions to samples: pure, independent of workers, and only of rows that may be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.dataset import Dataset
from infra.holdout import is_held_out
from tests.corpora import NEGATIVE, corpus, negatives
from training import record
from training.batches import Batches, Recent, prefetch
from training.recipes import AdaptorConfig, adaptor_tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AdaptorConfig:
    folder = tmp_path_factory.mktemp("corpus")
    batch = replace(adaptor_tiny().batch, crop_px=64, short_side_px=96, caption_dropout=0.3)
    return replace(adaptor_tiny(), input=corpus(folder / "c"), negatives=negatives(folder / "n"), negatives_weight=0.3, batch=batch)


def batches(config: AdaptorConfig, world: int = 1) -> Batches:
    sources = record.survey(config, captions=True).sources
    return Batches(sources, seed=config.seed, options=config.batch, world=world)


def test_a_sample_is_a_function_of_its_position(config: AdaptorConfig) -> None:
    first, again = batches(config), batches(config, world=4)
    wanted = [first.sample(p) for p in range(24)]
    for p in reversed(range(24)):  # another worker, begun anywhere, in another order
        other = again.sample(p)
        assert np.array_equal(other.lq_HWC, wanted[p].lq_HWC)
        assert np.array_equal(other.gt_HWC, wanted[p].gt_HWC)
        assert (other.prompt, other.timestep, other.noise_seed) == (wanted[p].prompt, wanted[p].timestep, wanted[p].noise_seed)


def test_threads_that_share_the_batches_get_the_same_samples(config: AdaptorConfig) -> None:
    alone, shared = batches(config), batches(config)
    wanted = [alone.sample(p) for p in range(24)]
    for sample, (other, _) in zip(wanted, prefetch(shared.sample, 0, 24, ahead=8, threads=4), strict=True):
        assert np.array_equal(other.lq_HWC, sample.lq_HWC)
        assert other.image_id == sample.image_id


def test_only_rows_that_may_be_used_are_drawn_and_texts_are_as_the_recipe_says(config: AdaptorConfig) -> None:
    samples = [batches(config).sample(p) for p in range(120)]
    rejected = Dataset(config.input).snapshot("selections")
    refused = {
        row["image_id"] for ref in rejected.shards.values() for row in Dataset(config.input).read(ref).to_pylist() if not row["accepted"]
    }
    photographs = [s for s in samples if s.source == "photographs"]
    assert not any(is_held_out(s.image_id) or s.image_id in refused for s in photographs)
    assert {s.prompt for s in samples if s.source == "negatives"} == {NEGATIVE}
    empty = sum(s.prompt == "" for s in photographs) / len(photographs)
    assert 0.1 < empty < 0.5, "about 0.3 of the captions are dropped"
    assert all(s.prompt.endswith("perfect without deformations.") for s in photographs if s.prompt)
    assert all(s.gt_HWC.shape == s.lq_HWC.shape == (64, 64, 3) and s.gt_HWC.dtype == np.uint8 for s in samples)
    assert 0.15 < len([s for s in samples if s.source == "negatives"]) / len(samples) < 0.45


def test_a_takedown_moves_no_other_sample(config: AdaptorConfig, tmp_path: Path) -> None:
    own = replace(config, input=corpus(tmp_path / "c"))
    before = [batches(own).sample(p) for p in range(40)]
    gone = Counter(s.image_id for s in before if s.source == "photographs").most_common(1)[0][0]
    Dataset(own.input).add_takedown([gone], "test")
    after = [batches(own).sample(p) for p in range(40)]
    assert gone not in {s.image_id for s in after}
    assert all(a.image_id == b.image_id for a, b in zip(after, before, strict=True) if b.image_id != gone)


def test_more_lanes_than_images_still_work(config: AdaptorConfig) -> None:
    many = replace(config, batch=replace(config.batch, lanes=64))
    assert len({batches(many, world=8).sample(p).image_id for p in range(128)}) > 3


def test_fixed_samples_are_held_out_first_and_never_change(config: AdaptorConfig) -> None:
    fixed, again = batches(config).fixed(3), batches(config, world=2).fixed(3)
    assert [s.image_id for s in fixed] == [s.image_id for s in again]
    assert all(np.array_equal(a.lq_HWC, b.lq_HWC) for a, b in zip(fixed, again, strict=True))
    assert is_held_out(fixed[0].image_id)


def test_a_corpus_without_usable_rows_teaches(config: AdaptorConfig) -> None:
    dataset, readers = Dataset(config.input), batches(config)
    rows = [row for ref in dataset.snapshot("images").shards.values() for row in dataset.read(ref).to_pylist()]
    readers._sources[0]._taken_down = frozenset(row["image_id"] for row in rows)
    with pytest.raises(ValueError, match="held out or taken down"):
        list(map(readers.sample, range(20)))


def test_prefetch_keeps_the_order_and_hands_over_errors() -> None:
    for threads in (1, 3):
        assert [value for value, _ in prefetch(lambda n: n * n, 3, 9, ahead=2, threads=threads)] == [n * n for n in range(3, 9)]
    values = prefetch(lambda n: 1 // (3 - n), 0, 9, ahead=2)
    with pytest.raises(ZeroDivisionError):
        list(values)


def test_recent_keeps_what_fits() -> None:
    made: list[str] = []
    cache: Recent[str] = Recent(2)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, lambda name=name: made.append(name) or name)  # type: ignore[func-returns-value,misc]
    assert made == ["a", "b", "c", "b"]
