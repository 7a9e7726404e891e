"""From positions to samples: pure, independent of workers, and only of rows that may be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import gc
from infra.dataset import AlteredFile, Dataset, ShardRef
from infra.holdout import is_held_out
from supir_model import images
from tests.corpora import NEGATIVE, corpus, negatives
from tests.helpers import commit_table
from training import record, sequence
from training.batches import Batches, Recent, Sample, prefetch
from training.recipes import AdaptorConfig, adaptor_tiny
from training.shards import Rows


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


def test_captions_are_dropped_by_draw_and_not_once_for_good(config: AdaptorConfig) -> None:
    """With nine images in four lanes each comes again and again, now with its text, now without."""
    texts: dict[str, set[bool]] = {}
    reader = batches(config)
    for position in range(200):
        source, row, _ = reader.ground_truth(position)
        if source.source.name == "photographs":
            texts.setdefault(row["image_id"], set()).add(reader._prompt(row["caption"], source, position) == "")
    assert all(found == {True, False} for found in texts.values()), texts


def test_photographs_faces_and_negatives_come_in_their_shares(config: AdaptorConfig, tmp_path: Path) -> None:
    """Exact in every thousand draws of a lane; faces are described as photographs are."""
    three = replace(config, faces=corpus(tmp_path / "f", photos=3, side_px=64), faces_weight=0.2, batch=replace(config.batch, lanes=1))
    reader = batches(three)
    drawn = [sequence.draw_source(three.seed, 0, turn, reader._parts)[0] for turn in range(1000)]
    names = [one.source.name for one in reader._sources]
    assert {names[source]: count for source, count in Counter(drawn).items()} == {"photographs": 500, "negatives": 300, "faces": 200}
    faces = [reader.sample(position) for position in range(12) if names[drawn[position]] == "faces"]
    assert faces
    assert {face.prompt[:13] for face in faces} <= {"A photograph,", ""}


def test_half_of_the_crops_are_mirrored_and_none_where_flips_are_off(config: AdaptorConfig) -> None:
    plain = batches(replace(config, batch=replace(config.batch, flip=False)))
    flipped = batches(config)
    mirrored = 0
    for position in range(40):
        (_, _, one_HWC), (_, _, other_HWC) = plain.ground_truth(position), flipped.ground_truth(position)
        same, turned = np.array_equal(one_HWC, other_HWC), np.array_equal(one_HWC[:, ::-1], other_HWC)
        assert same or turned, "the same crop, as it is or mirrored"
        mirrored += not same
    assert 10 < mirrored < 30


def test_whole_images_are_trained_on_where_the_short_side_is_the_crop(config: AdaptorConfig) -> None:
    whole = batches(replace(config, batch=replace(config.batch, crop_px=64, short_side_px=64, flip=False)))
    for position in range(6):
        _, row, crop_HWC = whole.ground_truth(position)
        resized_HWC = images.resize_short_side(images.decode(row["bytes"]).rgb_HWC, 64)
        assert min(resized_HWC.shape[:2]) == 64
        along = max(resized_HWC.shape[:2]) - 64
        cuts = [resized_HWC[at : at + 64, :64] if resized_HWC.shape[0] > 64 else resized_HWC[:64, at : at + 64] for at in range(along + 1)]
        assert any(np.array_equal(crop_HWC, cut) for cut in cuts), "the whole short side, a square of the long one"


def test_a_takedown_moves_no_other_sample(config: AdaptorConfig, tmp_path: Path) -> None:
    own = replace(config, input=corpus(tmp_path / "c"))
    before = [batches(own).sample(p) for p in range(40)]
    gone = Counter(s.image_id for s in before if s.source == "photographs").most_common(1)[0][0]
    Dataset(own.input).add_takedown([gone], "test")
    after = [batches(own).sample(p) for p in range(40)]
    assert gone not in {s.image_id for s in after}
    assert all(a.image_id == b.image_id for a, b in zip(after, before, strict=True) if b.image_id != gone)


def test_bytes_that_gc_removed_are_not_missed(config: AdaptorConfig, tmp_path: Path) -> None:
    """By a run that has begun and by a new one; the selection and the captions still name the picture."""
    own = replace(config, input=corpus(tmp_path / "c"))
    begun = record.survey(own, captions=True).sources
    before = [batches(own).sample(p) for p in range(24)]
    gone = next(s.image_id for s in before if s.source == "photographs")
    gc.take_down(Dataset(own.input), frozenset([gone]), "its owner asked", grace=timedelta(0))
    for sources in (record.present(begun), record.survey(own, captions=True).sources):
        reader = Batches(sources, seed=own.seed, options=own.batch, world=1)
        after = [reader.sample(p) for p in range(24)]
        assert gone not in {s.image_id for s in [*after, *reader.fixed(9)]}
        assert all(a.image_id == b.image_id for a, b in zip(after, before, strict=True) if b.image_id != gone)


def test_a_smaller_share_of_the_data_is_part_of_a_larger_one(config: AdaptorConfig) -> None:
    whole = replace(config, negatives=None, negatives_weight=0.0, batch=replace(config.batch, exclude_heldout=False))

    def drawn(fraction: float) -> set[str]:
        part = batches(replace(whole, batch=replace(whole.batch, fraction=fraction)))
        return {part._sources[0].row(position % 4, position // 4)["image_id"] for position in range(80)}

    found = [drawn(fraction) for fraction in (0.6, 0.8, 1.0)]
    assert found[0] < found[1] < found[2]
    assert len(found[2]) == 8, "all that were accepted"


def test_more_lanes_than_images_still_work(config: AdaptorConfig) -> None:
    many = replace(config, batch=replace(config.batch, lanes=64))
    assert len({batches(many, world=8).sample(p).image_id for p in range(128)}) > 3


def test_fixed_samples_are_held_out_first_and_never_change(config: AdaptorConfig) -> None:
    fixed, again = batches(config).fixed(3), batches(config, world=2).fixed(3)
    assert [s.image_id for s in fixed] == [s.image_id for s in again]
    assert all(np.array_equal(a.lq_HWC, b.lq_HWC) for a, b in zip(fixed, again, strict=True))
    assert is_held_out(fixed[0].image_id)


@pytest.mark.parametrize("large_bytes", [0, 2**26], ids=["row by row", "whole"])
@pytest.mark.parametrize(("table", "column"), [("captions", "caption"), ("images", "bytes"), ("images", "source_id")])
def test_a_table_of_another_schema_version_teaches(
    config: AdaptorConfig, tmp_path: Path, table: str, column: str, large_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.batches.LARGE_BYTES", large_bytes)
    url = corpus(tmp_path / "c")
    dataset = Dataset(url)
    shards = [dataset.read(ref) for ref in dataset.snapshot(table).shards.values()]
    names = [column + "_old" if name == column else name for name in shards[0].column_names]
    commit_table(dataset, table, [shard.rename_columns(names) for shard in shards], {"version": 2})
    with pytest.raises(ValueError, match=f"table {table} of .* has no column {column}, .* another schema version"):
        batches(replace(config, input=url, negatives=None, negatives_weight=0.0)).sample(0)


def test_an_image_smaller_than_the_crop_is_enlarged_to_it(tmp_path: Path) -> None:
    tiny = adaptor_tiny()
    batch = replace(tiny.batch, crop_px=128, short_side_px=None, exclude_heldout=False)
    small = replace(tiny, input=corpus(tmp_path / "c", photos=3, side_px=40), negatives=None, negatives_weight=0.0, batch=batch)
    assert all(batches(small).sample(position).gt_HWC.shape == (128, 128, 3) for position in range(4))


def place_of(sample: Sample) -> tuple[object, ...]:
    """All of a sample, pixels as their checksum."""
    return (sample.source, sample.image_id, sample.prompt, sample.timestep, sample.noise_seed, crc32(sample.gt_HWC), crc32(sample.lq_HWC))


SEEN = 48  # positions: with nine images in four lanes, every lane goes round several times


@pytest.fixture(scope="module")
def grown(config: AdaptorConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdaptorConfig, str, list[tuple[object, ...]]]:
    """A run that began, the samples of a worker that nobody disturbs, and then new shards in the corpus."""
    folder = tmp_path_factory.mktemp("grown")
    own = replace(config, input=corpus(folder / "c"), output=str(folder / "run"))
    run = record.begin_or_continue(own.output, record.survey(own, captions=True))
    reader = Batches(run.sources, seed=own.seed, options=own.batch, world=1)
    expected = [place_of(reader.sample(position)) for position in range(SEEN)]
    dataset = Dataset(own.input)
    for table in ("images", "selections", "captions"):
        shards = [dataset.read(ref) for ref in dataset.snapshot(table).shards.values()]
        commit_table(dataset, table, [*shards, *shards[:2]], {"grown": True})
    survey = record.survey(own, captions=True)
    assert len(survey.sources[0].shards) == len(run.sources[0].shards) + 2, "a new run would see them"
    return own, own.output, expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, SEEN // 4 - 1), world_log=st.integers(0, 2))
def test_resumed_anywhere_the_next_samples_are_those_of_the_uninterrupted_run(
    grown: tuple[AdaptorConfig, str, list[tuple[object, ...]]], step: int, world_log: int
) -> None:
    """Also at an epoch's edge, also after the corpus got new shards, on any number of workers."""
    own, output, expected = grown
    world = 2**world_log
    for rank in range(world):
        fresh = Batches(record.load(output).sources, seed=own.seed, options=own.batch, world=world)
        for position in sequence.positions(step, global_batch=4, world=world, rank=rank):
            assert place_of(fresh.sample(position)) == expected[position]


def test_a_worker_reads_its_share_of_the_corpus_and_each_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, world = adaptor_tiny(), 4
    url = corpus(tmp_path / "c", photos=8, per_shard=1)
    batch = replace(tiny.batch, crop_px=64, short_side_px=96, exclude_heldout=False, lanes=4)
    own = replace(tiny, input=url, negatives=None, negatives_weight=0.0, batch=batch)
    sources = record.survey(own, captions=True).sources
    read: list[str] = []
    real = Dataset.read

    def counting(dataset: Dataset, ref: ShardRef, columns: list[str] | None = None) -> pa.Table:
        read.extend([ref.path] if columns is None or "bytes" in columns else [])
        return real(dataset, ref, columns)

    monkeypatch.setattr(Dataset, "read", counting)
    shares = []
    for rank in range(world):
        reader, before = Batches(sources, seed=0, options=batch, world=world), len(read)
        for step in range(12):
            for position in sequence.positions(step, global_batch=4, world=world, rank=rank):
                reader.ground_truth(position)
        shares.append(read[before:])
    assert all(len(share) == len(set(share)) <= 2 for share in shares), "each file once"
    files = [ref.path for ref in Dataset(url).snapshot("images").shards.values()]
    assert sorted(path for share in shares for path in share) == sorted(files)[-7:], "no file by two workers; the first was rejected"


def test_first_rows_of_large_shards_do_not_wait_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = adaptor_tiny()
    url = corpus(tmp_path / "c", photos=8, per_shard=4)
    own = replace(tiny, input=url, negatives=None, negatives_weight=0.0, batch=replace(tiny.batch, crop_px=64, exclude_heldout=False))
    waiting = batches(own)
    expected = [waiting.ground_truth(position)[1:] for position in range(12)]
    go_on, real = Event(), Dataset.read

    def slow(dataset: Dataset, ref: ShardRef, columns: list[str] | None = None) -> pa.Table:
        assert ref.table != "images" or go_on.wait(60)
        return real(dataset, ref, columns)

    monkeypatch.setattr(Dataset, "read", slow)
    monkeypatch.setattr("training.batches.LARGE_BYTES", 0)
    own_lanes, spoilt = batches(own), batches(own)
    for position in range(12):
        if position == 6:
            go_on.set()
        _, row, crop_HWC = own_lanes.ground_truth(position)
        assert row == expected[position][0]
        assert np.array_equal(crop_HWC, expected[position][1])
    go_on.clear()
    for ref in Dataset(url).snapshot("images").shards.values():
        with Path(url, ref.path).open("ab") as file:
            file.write(b"\0")  # the footer is not where it was: no row can be proved
    go_on.set()
    with pytest.raises(AlteredFile, match="was altered after its commit"):
        spoilt.ground_truth(0)


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


def test_rows_are_views_of_the_table() -> None:
    table = pa.table({"image_id": [f"i{k}" for k in range(9)], "bytes": [bytes([k]) * k for k in range(9)], "parent_image_id": [None] * 9})
    for part in (table, table.slice(2, 5), pa.concat_tables([table.slice(7), table.slice(0, 3)])):
        rows = Rows(part)
        for expected in part.to_pylist():
            found = rows[expected["image_id"]]
            assert isinstance(found["bytes"], memoryview)
            assert {**found, "bytes": bytes(found["bytes"])} == expected


def test_recent_keeps_what_fits() -> None:
    made: list[str] = []
    cache: Recent[str] = Recent(2)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, lambda name=name: made.append(name) or name)  # type: ignore[func-returns-value,misc]
    assert made == ["a", "b", "c", "b"]
