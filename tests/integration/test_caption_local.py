"""Captions and negatives as a person runs them: the entry, a local Ray, an MLflow server, a random LLaVA, a random prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.dataset import Dataset, Snapshot
from pipelines.caption_samples import about, card, samples
from pipelines.negatives_review import choose_pairs, review, sheet
from pipelines.stages.negatives import NegativeSettings, NegativesStage
from tests.corpora import random_prior
from tests.helpers import MlflowServer, commit_table, images_dataset, photographs, run_entry
from tests.tiny_models import tiny_llava

pytestmark = pytest.mark.integration
PRICE = 3.6  # of a worker's hour: a thousandth for each of its seconds


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset, images = images_dataset(str(tmp_path_factory.mktemp("corpus")), photographs(4), per_shard=2, side_px=96)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    accepted = ([True, True], [True, False])
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array(a)) for t, a in zip(rows, accepted, strict=True)])
    return dataset


def tracked(server: MlflowServer, job: str, folder: Path) -> tuple[Any, list[np.ndarray]]:
    """(the run of a job on the server, its pictures as they come back from there)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("pipelines")
    [run] = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{job}'")
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    return run, [np.asarray(Image.open(client.download_artifacts(run.info.run_id, name, str(folder)))) for name in names]


def assert_told(run: Any, made: Snapshot, work: int) -> None:
    """What a job cost and what became of its rows is on the server, as its snapshot has it."""
    told, ledger = run.data.metrics, made.ledger
    assert run.info.status == "FINISHED"
    assert (told["rows/total"], told["rows/accepted"]) == (ledger.total, ledger.accepted)
    assert {name: told[f"reject_rate/{name}"] for name in ledger.rejected} == {n: c / ledger.total for n, c in ledger.rejected.items()}
    assert ledger.rejected, "no rate to look at"
    timings = [ref.timings for ref in made.shards.values()]
    for stage in ("read", "wait", "model", "total"):
        assert told[f"seconds/{stage}"] == pytest.approx(sum(one.get(f"{stage}_s", 0.0) for one in timings))
    assert told["worker_s_per_thousand"] >= 1000 * told["seconds/total"] / work
    assert told["cost_per_thousand"] == pytest.approx(told["worker_s_per_thousand"] * PRICE / 3600)
    assert told["images_per_s"] == pytest.approx(work / told["elapsed_s"], rel=0.2)


def test_llava_on_ray_says_the_same_in_any_batch_and_tells_mlflow(corpus: Dataset, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    model = tiny_llava(tmp_path / "llava")
    changes = [f"captioner.model={model}", "captioner.max_new_tokens=8", "workers.gpus=0", "workers.cpus=1", "checks.allow_cut=true",
               "checks.min_words=1", "checks.plain_english=false"]
    flags = ["--recipe", "llava_13b", "--input", corpus.store.url, *[word for change in changes for word in ("--set", change)]]
    done = run_entry("pipelines/caption.py", *flags, "--tracking", mlflow_server.uri, "--set", "workers.workers=2", "--set",
                     f"workers.price_per_hour={PRICE}", "--set", "sample_pictures=2")
    assert done.returncode == 0, done.stderr
    snapshot = corpus.snapshot("captions")
    assert snapshot.ledger.total == 4
    rows = [row for ref in snapshot.shards.values() for row in corpus.read(ref).to_pylist()]
    assert {(row["engine"], row["model"], row["finish_reason"]) for row in rows} == {("llava", "llava", "length")}
    assert all(line.startswith("caption: ") for line in done.stderr.splitlines()), f"not quiet: {done.stderr}"
    run, pictures = tracked(mlflow_server, "caption", tmp_path)
    assert_told(run, snapshot, work=3)
    assert run.data.metrics["counted/tokens"] == 8 * 3
    assert (run.data.params["captioner.max_new_tokens"], run.data.params["checks.min_words"]) == ("8", "1")
    cards = [card(picture, row["caption"], about(row)) for picture, row in samples(corpus, snapshot, 2)]
    assert {one.tobytes() for one in pictures} == {one.tobytes() for one in cards}
    for name in [name for name in corpus.store.list("commits/captions")]:
        corpus.store.delete(name.key)
    done = run_entry("pipelines/caption.py", *flags, "--set", "batch_size=1")
    assert done.returncode == 0, done.stderr
    assert corpus.snapshot("captions").digest == snapshot.digest


def test_a_model_that_cannot_be_set_up_ends_in_one_message(corpus: Dataset, tmp_path: Path) -> None:
    Path(tmp_path, "broken").mkdir()
    Path(tmp_path, "broken", "config.json").write_text('{"model_type": "llama"}')
    done = run_entry("pipelines/caption.py", "--recipe", "llava_7b", "--input", corpus.store.url, "--set", "workers.gpus=0",
                     "--set", "workers.cpus=1", "--set", f"captioner.model={tmp_path / 'broken'}")
    assert done.returncode == 2
    assert "is a model of type 'llama', expected 'llava'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_a_gpu_that_is_not_there_is_told_and_not_waited_for(corpus: Dataset) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_entry("pipelines/caption.py", "--input", corpus.store.url, "--set", "workers.gpus=1", "--set", "checks.min_words=2")
    assert done.returncode == 2
    assert "a worker asks for 1 GPU (found 0) on this machine" in done.stderr


def test_negatives_on_ray_are_those_made_here_and_told_to_mlflow(corpus: Dataset, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    prior = random_prior(tmp_path / "prior")
    changes = [f"prior={prior}", "negatives.size_px=64", "negatives.steps=2", "parents.count=3", "parents.exclude_heldout=false",
               "workers.workers=2", f"workers.price_per_hour={PRICE}"]
    done = run_entry("pipelines/negatives.py", "--input", corpus.store.url, "--output", str(tmp_path / "bad"),
                     "--tracking", mlflow_server.uri, *[word for change in changes for word in ("--set", change)])
    assert done.returncode == 0, done.stderr
    made = Dataset(str(tmp_path / "bad"))
    rows = [row for ref in made.snapshot("images").shards.values() for row in made.read(ref).to_pylist()]
    assert len(rows) == made.snapshot("captions").rows == 3
    stage = NegativesStage(settings=NegativeSettings(size_px=64, steps=2), prior=prior, weights="")
    stage.setup()
    images = pa.concat_tables([corpus.read(ref) for ref in corpus.snapshot("images").shards.values()])
    parents = {row["source_id"] for row in images.to_pylist() if row["image_id"] in {one["parent_image_id"] for one in rows}}
    here = stage.process({"images": images}, {"parents": sorted(parents)}).table.to_pylist()
    assert [row["image_id"] for row in here] == [row["image_id"] for row in rows]
    run, pictures = tracked(mlflow_server, "negatives", tmp_path)
    assert_told(run, made.snapshot("images"), work=3)
    assert run.data.params["settings.size_px"] == "64"
    pairs = list(choose_pairs(corpus, made, made.snapshot("images"), stage.fit, 100))
    assert [one.tobytes() for one in pictures] == [sheet(pairs).tobytes()]
    wanted = review(pairs).metrics()
    assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)
