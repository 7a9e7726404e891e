"""Tracking against a real MLflow server over HTTP, which is also killed in the middle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.dataset import Dataset
from infra.tracking import MlflowTracker, open_tracker, read_metrics
from pipelines.runtime import job
from pipelines.runtime.cluster import WorkerOptions
from tests.helpers import MlflowServer
from tests.toys import Measure, toy_images

pytestmark = pytest.mark.integration


@pytest.fixture
def client(mlflow_server: MlflowServer) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=mlflow_server.uri)


def test_a_run_holds_its_configuration_metrics_images_and_artifacts(mlflow_server: MlflowServer, client: Any, tmp_path: Path) -> None:
    tracker = open_tracker(mlflow_server.uri, "whole", "first")
    tracker.config({"recipe": "tiny", "optimizer": {"lr": 1e-5}, "long": "x" * 900})
    tracker.image("validation/0", np.zeros((8, 8, 3), np.uint8), 5)
    tracker.artifact("tables/results.json", b"{}")
    tracker.tags({"git": "abc"})
    tracker.close()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["optimizer.lr"], run.data.tags["git"]) == ("1e-05", "abc")
    assert {a.path for a in client.list_artifacts(tracker.run_id)} >= {"config.json", "tables", "images"}
    assert Path(client.download_artifacts(tracker.run_id, "tables/results.json", str(tmp_path))).read_bytes() == b"{}"


def test_metrics_travel_in_batches(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = open_tracker(mlflow_server.uri, "batches", "run")
    assert isinstance(tracker, MlflowTracker)
    sent: list[int] = []
    real = tracker._client.log_batch
    monkeypatch.setattr(tracker._client, "log_batch", lambda run_id, metrics: (sent.append(len(metrics)), real(run_id, metrics=metrics)))
    for step in range(500):
        tracker.metrics({"loss": 1 / (step + 1), "lr": 1e-5}, step)
    tracker.close()
    assert sum(sent) == 1000
    assert len(sent) <= 10, "a request a step would cost a training step 28 ms"
    assert [step for step, _ in read_metrics(mlflow_server.uri, tracker.run_id)["loss"]] == list(range(500))


def test_a_continued_run_logs_no_step_twice(mlflow_server: MlflowServer, client: Any) -> None:
    first = open_tracker(mlflow_server.uri, "resume", "run")
    first.config({"lr": 1})
    for step in range(10):
        first.metrics({"loss": float(step)}, step)
    first.flush()  # then the process is killed: no close
    again = open_tracker(mlflow_server.uri, "resume", "run", first.run_id)
    again.config({"lr": 1, "more": 2})
    for step in range(6, 15):  # from the last checkpoint on
        again.metrics({"loss": float(step)}, step)
    again.close()
    history = client.get_metric_history(first.run_id, "loss")
    assert sorted(m.step for m in history) == list(range(15))
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_that_the_server_does_not_know_is_begun_anew_and_says_so(mlflow_server: MlflowServer, client: Any) -> None:
    tracker = open_tracker(mlflow_server.uri, "resume", "run", "0" * 32)
    tracker.close()
    assert tracker.run_id != "0" * 32
    assert client.get_run(tracker.run_id).data.tags["continues"] == "0" * 32


def test_a_server_that_is_killed_and_started_again_loses_nothing(mlflow_server: MlflowServer, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = open_tracker(mlflow_server.uri, "away", "run")
    for step in range(20):
        tracker.metrics({"loss": float(step)}, step)
    tracker.flush()
    mlflow_server.kill()
    try:
        for step in range(20, 40):
            tracker.metrics({"loss": float(step)}, step)
        tracker.flush()  # training goes on without it
    finally:
        mlflow_server.start()
    assert "20 metrics wait" in capsys.readouterr().err
    for step in range(40, 60):
        tracker.metrics({"loss": float(step)}, step)
    tracker.close()
    assert [step for step, _ in read_metrics(mlflow_server.uri, tracker.run_id)["loss"]] == list(range(60))


def test_a_job_logs_its_ledger(mlflow_server: MlflowServer, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.config import RunOptions
    from tests import toys

    monkeypatch.setattr(toys, "OPTIONS", RunOptions(recipe="test", tracking=mlflow_server.uri))
    dataset = Dataset(str(tmp_path))
    toys.run_here(Measure(threshold=500, raises=("0-0",)), dataset, toy_images(dataset, [3, 3]))
    experiment = client.get_experiment_by_name("pipelines")
    [run] = client.search_runs([experiment.experiment_id], "attributes.run_name = 'measure'")  # other files' jobs stand there too
    assert run.data.metrics["rows/total"] == 6
    assert run.data.metrics["failed/ArithmeticError"] == 1
    assert run.data.params["threshold"] == "500"


def test_a_job_whose_tracker_does_not_answer_stops_before_any_work(tmp_path: Path) -> None:
    from infra.config import RunOptions

    dataset = Dataset(str(tmp_path))
    images = toy_images(dataset, [3])
    options = RunOptions(recipe="test", tracking="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="no MLflow server answers"):
        job.run_stage(Measure(), source=dataset, inputs={"images": images}, output=dataset, options=options, workers=WorkerOptions())
    assert not dataset.has("scores")
