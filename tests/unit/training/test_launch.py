"""What Ray is asked for, and how often: without a cluster."""

from __future__ import annotations

import pytest

from training.launch import check_room, failures
from training.recipes import LaunchOptions

WANTED = LaunchOptions(workers=4, gpus_per_worker=1, cpus_per_worker=2, restarts=5)


def test_what_this_machine_has_not_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_room(WANTED, {"CPU": 8.0, "GPU": 4.0})
    with pytest.raises(ValueError, match=r"launch\.workers=4 want 4 GPUs and there are 0 on this machine: lower .* or set RAY_ADDRESS"):
        check_room(WANTED, {"CPU": 8.0})


def test_a_cluster_may_grow_and_is_waited_for_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    check_room(WANTED, {"CPU": 4.0, "GPU": 2.0})
    assert "want 8 CPUs and there are 4, 4 GPUs and there are 2 in the cluster: waiting for nodes, 30 minutes" in capsys.readouterr().out


def test_workers_that_cannot_be_started_are_not_started_for_ever() -> None:
    """Ray Train's own limit for these is none."""
    found = failures(WANTED)
    assert (found.max_failures, found.controller_failure_limit) == (5, 5)
