"""Runs of a real MLflow server beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.tracking import open_tracker
from tests.helpers import MlflowServer
from training import compare

pytestmark = pytest.mark.integration
HOSTILE = "<script>alert(1)</script>"


def make_run(uri: str, name: str, lr: float, end: float) -> str:
    tracker = open_tracker(uri, experiment="compared", run_name=name)
    tracker.config({"optimizer": {"lr": lr}, "batch": {"global_batch": 8}, "network": "tiny"})
    tracker.tags({"data": "d1", "note": HOSTILE})
    for step in range(1, 41):
        tracker.metrics({"loss": end + 1 / step, "validation/psnr_stage1": 20 - end}, 8 * step)
    tracker.close()
    return str(tracker.run_id)


def test_a_page_of_runs_and_its_artifact(mlflow_server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.tracking import MlflowClient

    ids = [make_run(mlflow_server.uri, name, lr, end) for name, lr, end in (("slow", 1e-5, 0.5), ("fast", 1e-4, 0.25))]
    page = tmp_path / "compare.html"
    command = ["--tracking", mlflow_server.uri, "--output", str(page), "--set", 'experiments=["compared"]']
    assert compare.main([*command, "--filter", "tags.data = 'd1'"]) == 0
    text = page.read_text()
    assert "<b class=\"best\">0.275</b>" in text, "the lower loss, of the run that ended at 0.25 + 1/40"
    assert "<b class=\"best\">19.75</b>" in text, "the higher PSNR"
    assert "optimizer.lr" in text
    assert "<th>network</th>" not in text, "what is equal is left out"
    assert "320 images" in text, "40 steps of 8"
    assert HOSTILE not in text
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name(compare.EXPERIMENT)
    assert experiment is not None
    [kept] = client.search_runs([experiment.experiment_id])
    assert kept.data.tags["runs"].split(",") == ids
    assert Path(client.download_artifacts(kept.info.run_id, "compare.html", str(tmp_path))).read_text() == text
    assert compare.main([*command, "--set", f'runs=["{ids[0]}"]']) == 0
    assert "configurations and tags are equal" in page.read_text()
    assert compare.main([*command, "--filter", "tags.data = 'nothing'"]) == 2
    assert "no run of compared matches" in capsys.readouterr().err
    assert compare.main([*command, "--filter", "this is no filter"]) == 2
