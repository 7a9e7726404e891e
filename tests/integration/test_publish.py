"""Publishing a trained run: both layouts, a card, MLflow's registry, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from infra.stores import open_store
from supir_model.prior import load_components
from supir_model.weights import load_adaptor
from tests.corpora import corpus, random_prior
from tests.helpers import MlflowServer
from training import checkpoint, publish, published, train_adaptor

pytestmark = pytest.mark.integration
SMALL = ["launch.launcher=local", "engine.kind=plain", "batch.crop_px=32", "batch.short_side_px=48", "batch.global_batch=4",
         "batch.micro_batch=2", "validation.images=1", "steps=4", "checkpoint.every_steps=2", "encoder=none", "negatives_weight=0",
         "optimizer.ema_half_life_images=8"]  # fmt: skip


def test_a_checkpoint_is_published_registered_and_left_again(
    tmp_path: Path, mlflow_server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    prior, tracking = random_prior(tmp_path / "prior"), ["--tracking", mlflow_server.uri]
    sets = [word for one in [*SMALL, f"prior={prior}"] for word in ("--set", one)]
    data, run, out = corpus(tmp_path / "c", photos=4, side_px=96), str(tmp_path / "run"), str(tmp_path / "out")
    assert train_adaptor.main(["--input", data, "--output", run, *tracking, *sets]) == 0
    urls = ["--input", run, "--output", out]
    assert publish.main([*urls, *tracking]) == 0
    assert publish.main([*urls, *tracking, "--step", "2", "--weights", "last", "--licence", "CC-BY-4.0"]) == 0
    store, client, name = open_store(out), MlflowClient(mlflow_server.uri), "supir-adaptor-tiny"
    assert (published.versions(store), published.current(store)) == ([1, 2], 2)
    assert client.get_model_version_by_alias(name, "current").tags["step"] == "2"

    tags = client.get_run(json.loads((tmp_path / "run/finished.json").read_text())["tracker_run_id"]).data.tags
    assert {"data", "code", "cluster", "run"} <= tags.keys()

    state = checkpoint.read(open_store(run), 4).parts["ema"]
    unet = load_components(Path(prior)).unet
    for path in (tmp_path / "out/v0001/adaptor", tmp_path / "out/v0001/official.safetensors"):
        loaded = load_adaptor(path, unet)
        assert all(torch.equal(p, state[f"supir.adaptor.{key}"]) for key, p in loaded.named_parameters())
    assert load(store.read("v0002/official.safetensors")).keys() == load(store.read("v0001/official.safetensors")).keys()
    facts, card = json.loads(store.read("v0002/card.json")), store.read("v0002/README.md").decode()
    assert (facts["step"], facts["images"], facts["weights"]) == (2, 8, "weights")
    assert facts["data"][0]["commits"]["images"]
    assert "loss" in facts["metrics"]
    assert "CC-BY-4.0" in card

    assert publish.main(["--output", out, *tracking, "--back-to", "1"]) == 0
    assert published.current(store) == 1
    assert client.get_model_version_by_alias(name, "current").tags["published"] == "1"
    assert publish.main(["--output", out, "--back-to", "7", "--dry-run"]) == 2
    assert "choose --back-to from [1, 2]" in capsys.readouterr().err
    assert publish.main([*urls, "--step", "3"]) == 2
    assert "choose --step from [2, 4]" in capsys.readouterr().err
    next(Path(run).glob("checkpoints/files/step-00000004.*.ema.safetensors")).write_bytes(b"cut")
    assert publish.main(urls) == 2
    assert "is damaged" in (said := capsys.readouterr().err)
    assert "choose --step from [2]" in said
    assert publish.main([*urls, "--step", "2", "--tracking", "http://127.0.0.1:9"]) == 2
    assert published.versions(store) == [1, 2], "a tracker that is away is told before a version is written"
