"""The tracker in memory and on sqlite; over HTTP: tests/integration/test_mlflow.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.tracking import ListTracker, TrackingError, check_tracking, open_tracker, read_metrics


def test_without_an_address_everything_is_kept_in_memory() -> None:
    tracker = open_tracker(None, "experiment", "run")
    assert isinstance(tracker, ListTracker)
    tracker.metrics({"loss": 1.0}, 0)
    tracker.artifact("a/b.txt", b"x")
    tracker.close("FAILED")
    assert (tracker.logged, tracker.artifacts, tracker.status) == ([(0, {"loss": 1.0})], {"a/b.txt": b"x"}, "FAILED")


def test_nobody_at_the_address_is_told_at_once() -> None:
    start = time.monotonic()
    for call in (lambda: check_tracking("http://127.0.0.1:9"), lambda: open_tracker("http://127.0.0.1:9", "e", "r")):
        with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127.0.0.1:9 .*: start it"):
            call()
    assert time.monotonic() - start < 5
    check_tracking(None)


@pytest.mark.parametrize("uri", ["mlruns", "file:///runs", "htp://user:secret@host:5000"])
def test_what_mlflow_cannot_use_is_told_before_anything_is_begun(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"is no tracking address: expected http://host:port, or sqlite:///") as told:
        check_tracking(uri)
    assert "secret" not in str(told.value)


def test_a_run_on_sqlite_is_continued_without_a_step_twice(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = open_tracker(uri, "laws", "run")
    for step in range(3):
        first.metrics({"loss": float(step)}, step)
    first.close("KILLED")
    again = open_tracker(uri, "laws", "run", first.run_id)
    assert again.run_id == first.run_id
    for step in range(1, 5):
        again.metrics({"loss": 100.0 + step, "new": 1.0}, step)
    again.close()
    found = read_metrics(uri, first.run_id)
    assert found["loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0)]
    assert [step for step, _ in found["new"]] == [1, 2, 3, 4], "a metric that the run did not have yet"
