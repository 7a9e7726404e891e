"""A training whose MLflow server goes away, comes back, and goes away for good: no step is missing in the end, none is there twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.stores import open_store
from infra.tracking import read_metrics
from tests.corpora import corpus, random_prior
from tests.helpers import ROOT, MlflowServer, entry_env
from training import checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(600)]

STEPS, EVERY, BATCH = 1200, 20, 4


def test_a_server_that_leaves_and_one_that_takes_its_place_have_every_step_once(tmp_path: Path) -> None:
    corpus(tmp_path / "c", photos=4, side_px=96)
    run, log, server = tmp_path / "run", tmp_path / "log", MlflowServer(tmp_path / "mlflow")
    store = open_store(str(run))
    sets = ["launch.launcher=local", "engine.kind=plain", "batch.crop_px=32", "batch.short_side_px=48", f"batch.global_batch={BATCH}",
            "batch.micro_batch=2", "validation.images=1", "validation.every_steps=100", f"steps={STEPS}", f"checkpoint.every_steps={EVERY}",
            f"prior={random_prior(tmp_path / 'prior')}"]  # fmt: skip
    command = [sys.executable, str(ROOT / "training" / "train_encoder.py"), "--input", str(tmp_path / "c"), "--output", str(run),
               *(word for one in sets for word in ("--set", one))]  # fmt: skip

    def train(uri: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen([*command, "--tracking", uri], env=entry_env(OMP_NUM_THREADS="1"), stdout=out, stderr=out)

    def wait(ready: Callable[[], bool], timeout_s: float = 120) -> None:
        until = time.monotonic() + timeout_s
        while not ready():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.05)

    def newest() -> int:
        return (checkpoint.steps(store) or [0])[-1]

    def waiting() -> int:
        """Steps that the newest checkpoint holds for the server."""
        return len(json.loads(store.read(checkpoint.manifest_key(newest())))["meta"]["unlogged"])

    server.start()
    process = train(server.uri)
    try:
        wait(lambda: newest() > 0)
        server.kill()
        wait(lambda: waiting() > EVERY)
        server.start()  # away for a while: the same training goes on, and sends what waited
        wait(lambda: waiting() == 0)
        server.kill()
        wait(lambda: waiting() > EVERY)
        process.kill()  # before anybody heard of these steps: they live in the checkpoint alone
        process.wait()
        left = checkpoint.steps(store)
        assert left[-1] < STEPS, "the training was to be killed on the way"
        run_id = checkpoint.read(store, newest()).meta.tracker_run_id
        other = MlflowServer(tmp_path / "mlflow")  # the same database behind another address
        assert other.uri != server.uri
        server = other
        server.start()
        process = train(server.uri)
        assert process.wait(300) == 0, log.read_text()[-3000:]
        found = read_metrics(server.uri, run_id)
        every = [BATCH * (step + 1) for step in range(STEPS)]
        for name in ("loss", "lr", "step"):
            assert [seen for seen, _ in found[name]] == every, f"{name}: each step once"
        assert [seen for seen, _ in found["validation/psnr_stage1"]] == [BATCH * step for step in range(0, STEPS + 1, 100)]
        registered(server.uri, run_id, store.url, {*left, *checkpoint.steps(store)})
    finally:
        process.kill()
        server.kill()


def registered(uri: str, run_id: str, where: str, kept: set[int]) -> None:
    """Checkpoints are known to the run, but for those that were removed by the policy before a server was told; the newest is its tag."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    names = {one.path for one in client.list_artifacts(run_id, checkpoint.FOLDER)}
    assert {checkpoint.manifest_key(step) for step in kept} <= names <= {checkpoint.manifest_key(n) for n in range(EVERY, STEPS + 1, EVERY)}
    assert len(names) > STEPS // EVERY // 2
    run = client.get_run(run_id)
    assert run.data.tags["checkpoint"] == f"{where}/{checkpoint.manifest_key(STEPS)}"
    assert run.info.status == "FINISHED"
