"""Captions and negatives as a person runs them: the entry, a local Ray, a random LLaVA, a random prior."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from infra.dataset import Dataset
from pipelines.stages.negatives import NegativeSettings, NegativesStage
from tests.corpora import random_prior
from tests.helpers import commit_table, images_dataset, photographs, run_entry
from tests.tiny_models import tiny_llava

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset, images = images_dataset(str(tmp_path_factory.mktemp("corpus")), photographs(4), per_shard=2, side_px=96)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array([True] * t.num_rows)) for t in rows])
    return dataset


def test_llava_on_ray_says_the_same_in_any_batch(corpus: Dataset, tmp_path: Path) -> None:
    model = tiny_llava(tmp_path / "llava")
    changes = [f"captioner.model={model}", "captioner.max_new_tokens=8", "workers.gpus=0", "workers.cpus=1", "checks.allow_cut=true",
               "checks.min_words=1", "checks.plain_english=false"]
    flags = ["--recipe", "llava_13b", "--input", corpus.store.url, *[word for change in changes for word in ("--set", change)]]
    done = run_entry("pipelines/caption.py", *flags, "--set", "workers.workers=2")
    assert done.returncode == 0, done.stderr
    snapshot = corpus.snapshot("captions")
    assert snapshot.ledger.total == 4
    rows = [row for ref in snapshot.shards.values() for row in corpus.read(ref).to_pylist()]
    assert {(row["engine"], row["model"], row["finish_reason"]) for row in rows} == {("llava", "llava", "length")}
    assert all(line.startswith("caption: ") for line in done.stderr.splitlines()), f"not quiet: {done.stderr}"
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


def test_negatives_on_ray_are_those_made_here(corpus: Dataset, tmp_path: Path) -> None:
    prior = random_prior(tmp_path / "prior")
    changes = [f"prior={prior}", "negatives.size_px=64", "negatives.steps=2", "parents.count=3", "parents.exclude_heldout=false",
               "workers.workers=2"]
    done = run_entry("pipelines/negatives.py", "--input", corpus.store.url, "--output", str(tmp_path / "bad"),
                     *[word for change in changes for word in ("--set", change)])
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
