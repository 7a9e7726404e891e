"""Laws 2, 3, 4 and 6 of the data contract: kill anything at any moment and run again, in any order, with any number of workers."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.dataset import Dataset, Snapshot
from pipelines.runtime.plan import plan_tasks, split_done
from pipelines.runtime.stage import Result
from pipelines.runtime.worker import DEATHS, ShardWorker
from tests.toys import Crash, CrashingStore, Measure, run_here, toy_images


@dataclass(frozen=True, kw_only=True)
class Began(Measure):
    """Says when the second shard, and each one behind it, is begun."""

    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0), metadata={"result": False})

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        if not rows["images"]["image_id"][0].as_py().startswith("0-"):
            self.began.release()
        return super().process(rows, params)


EXAMPLES = settings(max_examples=20)  # each writes real files
MEMORY = "/dev/shm"  # these laws are about order and crashes of a process, so they need not wait for a disk
SIZES = [2, 2, 1]
MOST_OPERATIONS = 60  # choice: more than the job below has
MOMENTS = ("before", "middle", "after")


@contextmanager
def fresh() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield str(Path(folder, "ds"))


def rows_of(dataset: Dataset, snapshot: Snapshot) -> list[str]:
    """Ids of every row that a snapshot accounts for: in its tables or among its outcomes."""
    kept = [one for ref in snapshot.shards.values() for one in dataset.read(ref).column("image_id").to_pylist()]
    return kept + [outcome.row_id for ref in snapshot.shards.values() for outcome in dataset.outcomes(ref)]


def asked_for(sizes: list[int]) -> Counter[str]:
    return Counter(f"{shard}-{row}" for shard, size in enumerate(sizes) for row in range(size))


@EXAMPLES
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), threshold=st.integers(0, 1000), workers=st.integers(1, 4), data=st.data())
def test_order_and_number_of_workers_change_nothing(sizes: list[int], threshold: int, workers: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    stage = Measure(threshold=threshold, raises=("0-1",))
    with fresh() as one, fresh() as other:
        straight = run_here(stage, Dataset(one), toy_images(Dataset(one), sizes))
        shuffled = run_here(stage, Dataset(other), toy_images(Dataset(other), sizes), order=order, workers=workers)
        assert straight.digest == shuffled.digest
        assert list(straight.shards) == list(shuffled.shards)
        assert straight.ledger == shuffled.ledger
        assert Counter(rows_of(Dataset(other), shuffled)) == asked_for(sizes)


def test_a_crash_at_any_operation_then_the_same_command_again() -> None:
    stage = Measure(threshold=500, raises=("1-1",))
    with fresh() as url:
        calm = Dataset(url)
        expected = run_here(stage, calm, toy_images(calm, SIZES))
    crashed = 0
    for moment, operation in ((moment, n) for moment in MOMENTS for n in range(MOST_OPERATIONS)):
        with fresh() as url:
            dataset = Dataset(url)
            images = toy_images(dataset, SIZES)
            if not crash(stage, dataset, images, operation, moment):
                continue  # the job has fewer operations than this
            crashed += 1
            again = run_here(stage, dataset, images)
            assert again.digest == expected.digest, f"a crash {moment} operation {operation} changed the content"
            assert again.ledger == expected.ledger
            assert Counter(rows_of(dataset, again)) == asked_for(SIZES), "a row was lost or came twice"
            assert dataset.snapshot("scores") == again
    assert 3 * 15 < crashed < 3 * MOST_OPERATIONS, f"{crashed} crashes: all operations of the job, and it has some"


def crash(stage: Measure, dataset: Dataset, images: Snapshot, operation: int, moment: str) -> bool:
    """Run the job on a machine that is switched off at an operation; False if the job ended before that."""
    unsafe = Dataset(dataset.store.url)
    unsafe.store = CrashingStore(dataset.store.url, operation, moment)
    try:
        run_here(stage, unsafe, images)
        return False
    except Crash:
        return True


@EXAMPLES
@given(crashes=st.lists(st.tuples(st.integers(0, 25), st.sampled_from(MOMENTS)), max_size=12))
def test_many_crashes_in_a_row_fail_no_innocent_row(crashes: list[tuple[int, str]]) -> None:
    with fresh() as url:
        dataset = Dataset(url)
        images = toy_images(dataset, [2, 1])
        for operation, moment in crashes:
            crash(Measure(), dataset, images, operation, moment)
        assert not run_here(Measure(), dataset, images).ledger.failed


def commits(dataset: Dataset) -> set[str]:
    """Every shard that was ever committed."""
    return {entry.key for entry in dataset.store.list("commits/scores") if "/current/" not in entry.key}


def shards_of(names: set[str]) -> list[str]:
    return sorted(name.rsplit("/", 1)[1].split(".")[0] for name in names)


def test_nothing_changed_nothing_is_done_again(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, SIZES)
    first = run_here(Measure(threshold=10), dataset, images)
    before = {entry.key for entry in dataset.store.list()}
    assert run_here(Measure(threshold=10, delay_s=0.001), dataset, images) == first  # a field that does not change the result
    assert {entry.key for entry in dataset.store.list()} == before


@pytest.mark.parametrize("changed", [Measure(threshold=600), Measure(threshold=10, version=2), Measure(threshold=10, raises=("0-0",))])
def test_a_changed_recipe_or_version_redoes_every_shard_and_keeps_the_old_ones(tmp_path: Path, changed: Measure) -> None:
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, SIZES)
    first = run_here(Measure(threshold=10), dataset, images)
    before = commits(dataset)
    second = run_here(changed, dataset, images)
    assert shards_of(commits(dataset) - before) == ["00000", "00001", "00002"]
    assert second.version != first.version
    assert dataset.snapshot("scores") == second
    assert dataset.snapshot("scores", first.version) == first  # side by side
    done = commits(dataset)
    assert run_here(Measure(threshold=10), dataset, images) == first  # and back: nothing to do but point to it
    assert commits(dataset) == done
    assert dataset.snapshot("scores") == first


@EXAMPLES
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), data=st.data())
def test_exactly_the_shards_whose_input_changed_are_redone(sizes: list[int], data: st.DataObject) -> None:
    grown = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    other = [size + (shard in grown) for shard, size in enumerate(sizes)]
    with fresh() as url:
        dataset = Dataset(url)
        run_here(Measure(), dataset, toy_images(dataset, sizes))
        before = commits(dataset)
        snapshot = run_here(Measure(), dataset, toy_images(dataset, other))
        assert shards_of(commits(dataset) - before) == sorted(f"{shard:05d}" for shard in grown)
        assert Counter(rows_of(dataset, snapshot)) == asked_for(other)


def test_exactly_the_shards_whose_params_changed_are_redone(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, SIZES)
    run_here(Measure(), dataset, images, params_for_shard=lambda shard: {"offset": 1})
    before = commits(dataset)
    run_here(Measure(), dataset, images, params_for_shard=lambda shard: {"offset": 2 if shard == "00001" else 1})
    assert shards_of(commits(dataset) - before) == ["00001"]


def test_a_new_shard_alone_is_done(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    run_here(Measure(), dataset, toy_images(dataset, [2, 2]))
    before = commits(dataset)
    run_here(Measure(), dataset, toy_images(dataset, [2, 2, 3]))
    assert shards_of(commits(dataset) - before) == ["00002"]


def test_two_writers_of_one_shard_one_wins_and_both_see_it(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, [3])
    task = plan_tasks(Measure(), {"images": images})[0]
    first, second = (ShardWorker(Measure(), dataset, dataset).run(task) for _ in range(2))
    assert first.ref is not None
    assert first.ref == second.ref
    files = [entry.key for entry in dataset.store.list("scores")]
    assert files == [first.ref.path], "the loser's files are removed"


def test_the_next_shard_begins_while_the_last_one_is_written(tmp_path: Path) -> None:
    """A worker with two shards in hand: one at work, one on its way to the disk; the same rows, and no second counted twice."""
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, [3, 2, 4])
    stage = Began()
    create = dataset.store.create

    def slow_create(key: str, data: bytes) -> bool:
        if key.startswith("commits/scores") and "/00002." not in key:
            assert stage.began.acquire(timeout=10), "the next shard waited for the commit of this one"
        return create(key, data)

    dataset.store.create = slow_create  # type: ignore[method-assign]
    worker = ShardWorker(stage, dataset, dataset)
    began_s = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(worker.run, plan_tasks(stage, {"images": images})))
    refs = [report.ref for report in reports if report.ref]
    assert [ref.shard for ref in refs] == ["00000", "00001", "00002"]
    assert sum(report.elapsed_s for report in reports) <= time.monotonic() - began_s
    other = Dataset(str(tmp_path / "other"))
    alone = run_here(Measure(), other, toy_images(other, [3, 2, 4]))
    assert [ref.digest for ref in alone.shards.values()] == [ref.digest for ref in refs]


def test_a_stray_writer_that_wakes_up_late_changes_nothing(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, [3, 2])
    stray = plan_tasks(Measure(), {"images": images})  # planned, then suspended for a day
    done = run_here(Measure(), dataset, images)
    for task in stray:
        report = ShardWorker(Measure(), dataset, dataset).run(task)
        assert report.ref == done.shards[task.shard]
    assert dataset.snapshot("scores") == done
    assert split_done(dataset, Measure(), stray)[1] == []


@EXAMPLES
@given(size=st.integers(1, 9), data=st.data())
def test_rows_that_raise_fail_alone(size: int, data: st.DataObject) -> None:
    bad = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    with fresh() as url:
        dataset = Dataset(url)
        images = toy_images(dataset, [size])
        snapshot = run_here(Measure(raises=tuple(f"0-{row}" for row in bad)), dataset, images)
        outcomes = dataset.outcomes(snapshot.shards["00000"])
        assert [o.row_id for o in outcomes] == [f"0-{row}" for row in bad]
        assert all(o.reason == "ArithmeticError" and "is no good" in o.detail for o in outcomes)
        healthy = run_here(Measure(), dataset, images)
        kept = dataset.read(snapshot.shards["00000"])
        whole = dataset.read(healthy.shards["00000"])
        assert kept.equals(whole.take(pa.array([row for row in range(size) if row not in bad], pa.int64())))


def test_markers_of_dead_workers_lead_to_the_same_rows(tmp_path: Path) -> None:
    """Markers of every span, as often as a death count needs: the shard is halved to single rows, and none of them is guilty."""
    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, [3])
    task = plan_tasks(Measure(), {"images": images})[0]
    for span, death in itertools.product(("0-3", "0-1", "1-3", "1-2"), range(DEATHS)):
        dataset.store.put(f"attempts/scores/{task.shard}.{task.key}/{span}.{death}.json", b"{}")
    report = ShardWorker(Measure(), dataset, dataset).run(task)
    assert report.ref is not None
    assert report.ref.ledger.accepted == 3
    assert not list(dataset.store.list("attempts")), "markers are cleared after the commit"
