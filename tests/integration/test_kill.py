"""Jobs on a real local Ray whose workers, or whose storage, are killed in the middle: the same rows as an undisturbed run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infra.dataset import Dataset, Snapshot
from infra.storage import StorageError
from pipelines.runtime import cluster, job
from pipelines.runtime.cluster import WorkerOptions
from tests.helpers import S3Server, images_dataset, photographs, wait_until
from tests.toys import OPTIONS, Measure, Traced, run_here

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def run_on_ray(stage: Measure, dataset: Dataset, images: Snapshot, workers: int = 2, cpus: float = 0.5) -> Snapshot:
    snapshot = job.run_stage(stage, source=dataset, inputs={"images": images}, output=dataset, options=OPTIONS,
                             workers=WorkerOptions(workers=workers, cpus=cpus))
    assert snapshot is not None, "only a dry run returns nothing"
    return snapshot


def actors() -> list[psutil.Process]:
    """The worker processes of this process's own Ray that hold a shard actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ShardActor" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_an_actor() -> None:
    """SIGKILL to one shard actor, and wait until another one has taken its place."""
    wait_until(lambda: bool(actors()), "an actor")
    victim = actors()[0]
    victim.kill()
    wait_until(lambda: bool(actors()) and victim.pid not in [one.pid for one in actors()], "another actor")


@contextmanager
def meanwhile(disturb: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while the body runs; its errors are raised at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            disturb()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def undisturbed(tmp_path: Path) -> Snapshot:
    """What the job gives on a local disk, without Ray and without an accident."""
    dataset, images = images_dataset(str(tmp_path / "undisturbed"), photographs(6), per_shard=1)
    return run_here(Measure(threshold=200), dataset, images)


def test_a_job_on_s3_whose_actors_and_server_are_killed(s3: str, s3_server: S3Server, undisturbed: Snapshot) -> None:
    with cluster.connection():  # after `s3`: the workers see its AWS_* variables
        dataset, images = images_dataset(f"{s3}/corpus", photographs(6), per_shard=1)
        committed: list[int] = []

        def disturb() -> None:
            kill_an_actor()
            wait_until(lambda: len(dataset.committed("scores", version)) > 0, "the first shard")
            s3_server.kill()
            s3_server.start()
            committed.append(len(dataset.committed("scores", version)))
            kill_an_actor()

        stage = Measure(threshold=200, delay_s=1.5)
        version = undisturbed.version
        try:
            with meanwhile(disturb):
                snapshot = run_on_ray(stage, dataset, images)
        finally:
            if s3_server.process is None:
                s3_server.start()
        assert committed[0] < 6, "the accident came too late to disturb anything"
        assert snapshot.version == version
        assert snapshot.digest == undisturbed.digest
        assert snapshot.ledger == undisturbed.ledger
        assert dataset.snapshot("scores") == snapshot


@pytest.mark.chaos
def test_a_node_that_joins_a_running_job_takes_shards(undisturbed: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    dataset, images = images_dataset(str(tmp_path / "corpus"), photographs(6), per_shard=1)
    traces = tmp_path / "traces"
    traces.mkdir()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    stage = Traced(threshold=200, delay_s=4, traces=str(traces))
    snapshots = []
    try:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with cluster.connection(), meanwhile(lambda: snapshots.append(run_on_ray(stage, dataset, images, cpus=1))):
            wait_until(lambda: bool(list(traces.iterdir())), "the first shard")
            joined = nodes.add_node(num_cpus=1, object_store_memory=10**8).all_processes["raylet"][0].process.pid
    finally:
        nodes.shutdown()
    shards_of = Counter(int(path.name.split(".")[0]) for path in traces.iterdir())
    assert len(shards_of) == 2, f"one node did all: {shards_of}"
    assert shards_of[joined] >= 1
    assert (snapshots[0].digest, snapshots[0].ledger) == (undisturbed.digest, undisturbed.ledger)
    assert shards_of.total() == 6, "no shard was done twice"


def test_on_a_local_ray(undisturbed: Snapshot, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                        monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ray for several: a plain job, a row that kills its worker, a set-up that fails."""
    dataset, images = images_dataset(str(tmp_path / "corpus"), photographs(6), per_shard=1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster.connection():
        raylets = [one for one in psutil.Process().children(recursive=True) if one.name() == "raylet"]
        assert raylets, "without RAY_ADDRESS a job starts a Ray of its own, whatever else runs on the machine"
        assert run_on_ray(Measure(threshold=200), dataset, images).digest == undisturbed.digest
        assert "6 in = " in capfd.readouterr().out

        start = time.monotonic()
        with pytest.raises(StorageError, match=r"measure: shard \d+: could not set up \(OSError\): no weights at /models/llava"):
            run_on_ray(Measure(setup_error="no weights at /models/llava"), dataset, images)
        assert time.monotonic() - start < 60, "a set-up that fails is not tried for ever"

        pairs, images = images_dataset(str(tmp_path / "pairs"), photographs(4), per_shard=2)
        rows = [one for ref in images.shards.values() for one in pairs.read(ref, ["image_id"]).column("image_id").to_pylist()]
        snapshot = run_on_ray(Measure(dies=(rows[1],)), pairs, images)
        assert snapshot.ledger.failed == {"WorkerDied": 1}
        assert snapshot.ledger.accepted == 3
        [outcome] = pairs.outcomes(snapshot.shards["00000"])
        assert outcome.row_id == rows[1]
        assert "exit code 77" in outcome.detail
        assert not list(pairs.store.list("attempts"))
    _, alive = psutil.wait_procs(raylets, timeout=10)
    assert not alive, "and ends it"
