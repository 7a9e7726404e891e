"""Tracking of runs: MLflow where an address is given, a list in memory where not. The only module that imports mlflow."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

BATCH_METRICS = 200  # choice: 28 ms a request over HTTP, so metrics travel together
BATCH_AGE_S = 5.0  # choice: a curve that a person watches is at most this old
AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # error codes that another try may mend
Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingError(ValueError):
    """The tracking server cannot be used; the message says what to do."""


class Tracker(Protocol):
    """One run. Metrics are logged once per (name, step), also over restarts of the same run."""

    run_id: str

    def config(self, values: dict[str, Any]) -> None: ...
    def metrics(self, values: dict[str, float], step: int) -> None: ...
    def image(self, name: str, rgb_HWC: Any, step: int) -> None: ...
    def artifact(self, name: str, data: bytes) -> None: ...
    def tags(self, values: dict[str, str]) -> None: ...
    def flush(self) -> None: ...
    def close(self, status: Status = "FINISHED") -> None: ...


def open_tracker(uri: str | None, experiment: str, run_name: str, run_id: str | None = None) -> Tracker:
    """Open a run at an MLflow address (`sqlite:///…` or `http://…`), or a ListTracker when there is none.

    With `run_id` the run is continued; if the server does not know it any more, a new run is begun and tagged with the old id.
    Raises TrackingError at once when nobody answers there.
    """
    if uri is None:
        return ListTracker(run_id=run_id or "local")
    check_tracking(uri)
    return MlflowTracker(uri, experiment, run_name, run_id)


def check_tracking(uri: str | None) -> None:
    """Raise TrackingError unless somebody answers at the address; the client itself would try for minutes."""
    if uri is None or not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:  # a server that answers, if with a refusal
        return
    except OSError as error:
        shown = re.sub(r"//[^/@]*@", "//…@", uri)  # a password may stand there
        raise TrackingError(f"no MLflow server answers at {shown} ({error}): start it (`make mlflow`), correct --tracking or "
                            "MLFLOW_TRACKING_URI, or leave them out to run without tracking") from error


@dataclass
class ListTracker:
    """Keeps what was logged in memory: for tests and for runs without a server."""

    run_id: str = "local"
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    images: list[tuple[str, int]] = field(default_factory=list)
    tagged: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"

    def config(self, values: dict[str, Any]) -> None:
        self.configs.append(values)

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, dict(values)))

    def image(self, name: str, rgb_HWC: Any, step: int) -> None:
        self.images.append((name, step))

    def artifact(self, name: str, data: bytes) -> None:
        self.artifacts[name] = data

    def tags(self, values: dict[str, str]) -> None:
        self.tagged.update(values)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self, status: Status = "FINISHED") -> None:
        self.status = status


class MlflowTracker:
    """A run on an MLflow server or database, through the client API: no global state, safe beside other runs."""

    def __init__(self, uri: str, experiment: str, run_name: str, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # choice: its default stops a training step for minutes
        from mlflow.tracking import MlflowClient  # late: an import of seconds

        self._client = MlflowClient(tracking_uri=uri)
        self._pending: list[Any] = []
        self._flushed_at = time.monotonic()
        self._last_step: dict[str, int] = {}
        found = self._find(run_id) if run_id else None
        self._resumed = found is not None
        self.run_id: str = found or self._begin(uri, experiment, run_name)
        if run_id and not found:
            self.tags({"continues": run_id})

    def _find(self, run_id: str) -> str | None:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            self._client.set_terminated(run_id, status="RUNNING")
            return run_id
        return None

    def _begin(self, uri: str, experiment: str, run_name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(experiment)
        try:
            experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, artifact_location(uri))
        except MlflowException:  # another job of the same name was first
            experiment_id = self._client.search_experiments(filter_string=f"name = '{experiment}'")[0].experiment_id
        return str(self._client.create_run(experiment_id, run_name=run_name).info.run_id)

    def config(self, values: dict[str, Any]) -> None:
        """Log every leaf as a parameter (dotted names), and the whole as config.json; a continued run keeps its first parameters."""
        from mlflow.entities import Param

        self.artifact("config.json", json.dumps(values, indent=1, sort_keys=True).encode())
        known = self._client.get_run(self.run_id).data.params
        params = [Param(key, str(value)[:500]) for key, value in _leaves("", values) if key not in known]
        for start in range(0, len(params), 100):  # the server takes 100 a request
            self._client.log_batch(self.run_id, params=params[start:start + 100])

    def metrics(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        fresh = {name: value for name, value in values.items() if step > self._last(name)}
        for name, value in fresh.items():
            self._last_step[name] = step
            self._pending.append(Metric(name, float(value), now_ms, step))
        if len(self._pending) >= BATCH_METRICS or time.monotonic() - self._flushed_at > BATCH_AGE_S:
            self.flush()

    def _last(self, name: str) -> int:
        """The last step at which this run has the metric: a restart must not log a step twice."""
        if name not in self._last_step:
            history = self._client.get_metric_history(self.run_id, name) if self._resumed else []
            self._last_step[name] = max((metric.step for metric in history), default=-1)
        return self._last_step[name]

    def flush(self) -> None:
        """Send what waits. A server that is away does not stop the run: metrics wait for it until `close`."""
        from mlflow.exceptions import MlflowException

        try:
            self._send()
        except MlflowException as error:
            if error.error_code not in AWAY:
                raise
            print(f"MLflow does not answer, {len(self._pending)} metrics wait: {str(error)[:200]}", file=sys.stderr, flush=True)
        self._flushed_at = time.monotonic()

    def _send(self) -> None:
        while self._pending:
            self._client.log_batch(self.run_id, metrics=self._pending[:1000])  # the server takes 1000 a request
            del self._pending[:1000]

    def image(self, name: str, rgb_HWC: Any, step: int) -> None:
        from PIL import Image

        self._client.log_image(self.run_id, Image.fromarray(rgb_HWC), key=name, step=step)

    def artifact(self, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(data)
            parent = str(Path(name).parent)
            self._client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

    def tags(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def close(self, status: Status = "FINISHED") -> None:
        self._send()
        self._client.set_terminated(self.run_id, status=status)


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a sqlite database (MLflow takes the current folder), else where the server says."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).resolve().with_name("mlflow-artifacts").as_uri()


def read_metrics(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value) in the order of the steps; nothing if the address does not know the run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    try:
        names = sorted(client.get_run(run_id).data.metrics)
    except MlflowException:
        return {}
    return {name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name)) for name in names}


def _leaves(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
