"""Captions and negatives by their entries on real parts: a local Ray, an MLflow server, a random LLaVA, a random prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.dataset import Dataset, Snapshot
from pipelines import caption, negatives
from pipelines.caption_samples import about, card, samples
from pipelines.negatives_review import choose_pairs, review, sheet
from pipelines.runtime import cluster
from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.negatives import NegativeSettings, NegativesStage
from tests.corpora import random_prior
from tests.helpers import MlflowServer, commit_table, images_dataset, photographs
from tests.tiny_models import tiny_llava

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]
PRICE = 3.6  # of a worker's hour: a thousandth for each of its seconds


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset, images = images_dataset(str(tmp_path_factory.mktemp("corpus")), photographs(4), per_shard=2, side_px=96)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    accepted = ([True, True], [True, False])
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array(a)) for t, a in zip(rows, accepted, strict=True)])
    return dataset


def tracked(server: MlflowServer, job: str, folder: Path, status: str = "FINISHED") -> tuple[Any, list[np.ndarray]]:
    """(the run of a job that ended so on the server, its pictures as they come back from there)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("pipelines")
    [run] = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{job}' and attributes.status = '{status}'")
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    return run, [np.asarray(Image.open(client.download_artifacts(run.info.run_id, name, str(folder)))) for name in names]


def assert_told(run: Any, made: Snapshot, work: int) -> None:
    """What a job cost and what became of its rows is on the server, as its snapshot has it."""
    told, ledger = run.data.metrics, made.ledger
    assert (told["rows/total"], told["rows/accepted"]) == (ledger.total, ledger.accepted)
    assert {name: told[f"reject_rate/{name}"] for name in ledger.rejected} == {n: c / ledger.total for n, c in ledger.rejected.items()}
    assert ledger.rejected, "no rate to look at"
    timings = [ref.timings for ref in made.shards.values()]
    for stage in ("read", "wait", "model", "total"):
        assert told[f"seconds/{stage}"] == pytest.approx(sum(one.get(f"{stage}_s", 0.0) for one in timings))
    assert told["worker_s_per_thousand"] >= 1000 * told["seconds/total"] / work
    assert told["cost_per_thousand"] == pytest.approx(told["worker_s_per_thousand"] * PRICE / 3600)
    assert told["images_per_s"] == pytest.approx(work / told["elapsed_s"], rel=0.2)


def run(job: Any, capfd: pytest.CaptureFixture[str], *flags: str, changes: list[str]) -> tuple[int, str]:
    """(exit code, what the job said on stderr)."""
    capfd.readouterr()
    code = job.main([*flags, *[word for change in changes for word in ("--set", change)]])
    return code, capfd.readouterr().err


def test_llava_on_ray_says_the_same_in_any_batch_and_tells_mlflow(corpus: Dataset, tmp_path: Path, mlflow_server: MlflowServer,
                                                                  capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_llava(tmp_path / "llava")
    changes = [f"captioner.model={model}", "captioner.max_new_tokens=8", "workers.gpus=0", "workers.cpus=1", "checks.allow_cut=true",
               "checks.min_words=1", "checks.plain_english=false", f"workers.price_per_hour={PRICE}", "sample_pictures=2"]
    flags = ["--recipe", "llava_13b", "--input", corpus.store.url]
    code, said = run(caption, capfd, *flags, "--tracking", mlflow_server.uri, changes=[*changes, "workers.workers=2"])
    assert code == 0, said
    snapshot = corpus.snapshot("captions")
    assert snapshot.ledger.total == 4
    rows = [row for ref in snapshot.shards.values() for row in corpus.read(ref).to_pylist()]
    assert {(row["engine"], row["model"], row["finish_reason"]) for row in rows} == {("llava", "llava", "length")}
    assert all(line.startswith("caption: ") for line in said.splitlines()), f"not quiet: {said}"
    tracked_run, pictures = tracked(mlflow_server, "caption", tmp_path)
    assert_told(tracked_run, snapshot, work=3)
    assert tracked_run.data.metrics["counted/tokens"] == 8 * 3
    assert (tracked_run.data.params["captioner.max_new_tokens"], tracked_run.data.params["checks.min_words"]) == ("8", "1")
    cards = [card(picture, row["caption"], about(row)) for picture, row in samples(corpus, snapshot, 2)]
    assert {one.tobytes() for one in pictures} == {one.tobytes() for one in cards}
    for name in [name for name in corpus.store.list("commits/captions")]:
        corpus.store.delete(name.key)
    code, said = run(caption, capfd, *flags, changes=[*changes, "batch_size=1"])
    assert code == 0, said
    assert corpus.snapshot("captions").digest == snapshot.digest


def test_a_job_that_stops_itself_is_a_failed_run_with_its_rates(corpus: Dataset, tmp_path: Path, mlflow_server: MlflowServer,
                                                                capfd: pytest.CaptureFixture[str]) -> None:
    code, said = run(caption, capfd, "--input", corpus.store.url, "--tracking", mlflow_server.uri,
                     changes=["checks.min_words=500", "band.min_rows=1"])
    assert code == 2
    assert "100.0% of " in said
    stopped, pictures = tracked(mlflow_server, "caption", tmp_path, "FAILED")
    assert stopped.data.metrics["reject_rate/too_short"] > 0
    assert pictures == []


def test_what_cannot_be_set_up_ends_in_one_message(corpus: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path(tmp_path, "broken").mkdir()
    Path(tmp_path, "broken", "config.json").write_text('{"model_type": "llama"}')
    code, said = run(caption, capfd, "--recipe", "llava_7b", "--input", corpus.store.url,
                     changes=["workers.gpus=0", "workers.cpus=1", f"captioner.model={tmp_path / 'broken'}"])
    assert code == 2
    assert "is a model of type 'llama', expected 'llava'" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2, said
    import torch

    if not torch.cuda.is_available():
        code, said = run(caption, capfd, "--input", corpus.store.url, changes=["workers.gpus=1", "checks.min_words=2"])
        assert code == 2
        assert "a worker asks for 1 GPU (found 0) on this machine: set workers.cpus or workers.gpus to what it has" in said


def test_a_node_that_a_cluster_does_not_bring_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "a-cluster:6379")  # the one of this file stands for it
    cluster.check_room(WorkerOptions(cpus=1))
    monkeypatch.setattr(cluster, "ROOM_S", 0.6)
    with pytest.raises(ValueError, match=r"came in 0\.01 minutes that has what a worker asks for, 64 GPU \(found \d\): add such"):
        cluster.check_room(WorkerOptions(gpus=64))


def test_negatives_on_ray_are_those_made_here_and_told_to_mlflow(corpus: Dataset, tmp_path: Path, mlflow_server: MlflowServer,
                                                                 capfd: pytest.CaptureFixture[str]) -> None:
    prior = random_prior(tmp_path / "prior")
    changes = [f"prior={prior}", "negatives.size_px=64", "negatives.steps=2", "parents.count=3", "parents.exclude_heldout=false",
               "workers.workers=2", f"workers.price_per_hour={PRICE}"]
    code, said = run(negatives, capfd, "--input", corpus.store.url, "--output", str(tmp_path / "bad"), "--tracking", mlflow_server.uri,
                     changes=changes)
    assert code == 0, said
    made = Dataset(str(tmp_path / "bad"))
    rows = [row for ref in made.snapshot("images").shards.values() for row in made.read(ref).to_pylist()]
    assert len(rows) == made.snapshot("captions").rows == 3
    stage = NegativesStage(settings=NegativeSettings(size_px=64, steps=2), prior=prior, weights="")
    stage.setup()
    images = pa.concat_tables([corpus.read(ref) for ref in corpus.snapshot("images").shards.values()])
    parents = {row["source_id"] for row in images.to_pylist() if row["image_id"] in {one["parent_image_id"] for one in rows}}
    here = stage.process({"images": images}, {"parents": sorted(parents)}).table.to_pylist()
    assert [row["image_id"] for row in here] == [row["image_id"] for row in rows]
    tracked_run, pictures = tracked(mlflow_server, "negatives", tmp_path)
    assert_told(tracked_run, made.snapshot("images"), work=3)
    assert tracked_run.data.params["settings.size_px"] == "64"
    pairs = list(choose_pairs(corpus, made, made.snapshot("images"), stage.fit, 100))
    assert [one.tobytes() for one in pictures] == [sheet(pairs).tobytes()]
    wanted = review(pairs).metrics()
    assert {name: tracked_run.data.metrics[name] for name in wanted} == pytest.approx(wanted)
