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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from infra.outbox import Outbox, Point

CLOSE_S = 150.0  # choice: how long a run that has ended waits for a server that is away
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
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
    def flush(self, timeout_s: float = 10.0) -> None: ...
    def unsent(self) -> list[Point]: ...
    def close(self, status: Status = "FINISHED", timeout_s: float = CLOSE_S) -> None: ...


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
    """Raise TrackingError unless it is an address that MLflow takes, and somebody answers there; the client would try for minutes."""
    if uri is None:
        return
    scheme = uri.partition("://")[0] if "://" in uri else ""
    shown = re.sub(r"//[^/@]*@", "//…@", uri)  # a password may stand there
    if scheme.partition("+")[0] not in SCHEMES:  # mysql+pymysql
        raise TrackingError(f"{shown!r} is no tracking address: expected http://host:port, or sqlite:///folder/mlflow.db (four slashes "
                            "before an absolute path); MLflow itself no longer takes folders")
    if not scheme.startswith("http"):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:  # a server that answers, if with a refusal
        return
    except OSError as error:
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

    def flush(self, timeout_s: float = 10.0) -> None:
        """Nothing waits."""

    def unsent(self) -> list[Point]:
        """Nothing waits."""
        return []

    def close(self, status: Status = "FINISHED", timeout_s: float = CLOSE_S) -> None:
        self.status = status


class MlflowTracker:
    """A run on an MLflow server or database, through the client API: no global state, safe beside other runs.

    The run and its configuration are written at once. Metrics, pictures, files and tags are sent by a thread in their order, so a
    step never waits for the server; while it is away they wait, and `unsent` says which metrics.
    """

    def __init__(self, uri: str, experiment: str, run_name: str, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # choice: our own thread tries again
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow.tracking import MlflowClient  # late: an import of seconds

        self._client = MlflowClient(tracking_uri=uri)
        found = self._find(run_id) if run_id else None
        self.run_id: str = found or self._begin(uri, experiment, run_name)
        self._outbox = Outbox(self._send_metrics, attempt)
        self._last_step: dict[str, int] = {}
        self._resumed = found is not None
        if run_id and not found:
            self.tags({"continues": run_id})

    def _find(self, run_id: str) -> str | None:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            self._client.set_terminated(run_id, status="RUNNING")
            return run_id
        return None

    def _begin(self, uri: str, experiment: str, run_name: str) -> str:
        return str(self._client.create_run(_experiment_id(self._client, uri, experiment), run_name=run_name).info.run_id)

    def config(self, values: dict[str, Any]) -> None:
        """Log every leaf as a parameter (dotted names), and the whole as config.json; a continued run keeps its first parameters."""
        from mlflow.entities import Param

        self.artifact("config.json", json.dumps(values, indent=1, sort_keys=True).encode())
        known = self._client.get_run(self.run_id).data.params
        params = [Param(key, str(value)[:500]) for key, value in _leaves("", values) if key not in known]
        for start in range(0, len(params), 100):  # the server takes 100 a request
            self._client.log_batch(self.run_id, params=params[start:start + 100])

    def metrics(self, values: dict[str, float], step: int) -> None:
        self._outbox.add_point((step, dict(values)))

    def _send_metrics(self, points: Sequence[Point]) -> None:
        """What the run does not have yet: a restart must not log a step twice. In the thread, because it asks the server."""
        from mlflow.entities import Metric

        now_ms, fresh = int(time.time() * 1000), []
        reached: dict[str, int] = {}
        for step, values in points:
            for name, value in values.items():
                if step > max(reached.get(name, -1), self._last(name)):
                    reached[name] = step
                    fresh.append(Metric(name, float(value), now_ms, step))
        for start in range(0, len(fresh), 1000):  # the server takes 1000 a request
            self._client.log_batch(self.run_id, metrics=fresh[start:start + 1000])
            self._last_step |= {metric.key: metric.step for metric in fresh[start:start + 1000]}

    def _last(self, name: str) -> int:
        """The last step at which this run has the metric."""
        if name not in self._last_step:
            history = self._client.get_metric_history(self.run_id, name) if self._resumed else []
            self._last_step[name] = max((metric.step for metric in history), default=-1)
        return self._last_step[name]

    def flush(self, timeout_s: float = 10.0) -> None:
        """Send what waits, at most so long. A server that is away does not stop the run: what is left waits for it."""
        self._outbox.flush(timeout_s)

    def unsent(self) -> list[Point]:
        """Metrics that the server has not confirmed. Given again to `metrics` by whoever continues the run, none is lost or doubled."""
        return self._outbox.points()

    def image(self, name: str, rgb_HWC: Any, step: int) -> None:
        from PIL import Image

        picture = Image.fromarray(rgb_HWC.copy())
        self._outbox.add(lambda: self._client.log_image(self.run_id, picture, key=name, step=step))

    def artifact(self, name: str, data: bytes) -> None:
        self._outbox.add(lambda: log_bytes(self._client, self.run_id, name, data))

    def tags(self, values: dict[str, str]) -> None:
        def send() -> None:
            for key, value in values.items():
                self._client.set_tag(self.run_id, key, value)

        self._outbox.add(send)

    def close(self, status: Status = "FINISHED", timeout_s: float = CLOSE_S) -> None:
        """Send what waits, for a server that is away some minutes at most, and end the run."""
        self._outbox.add(lambda: self._client.set_terminated(self.run_id, status=status))
        left = self._outbox.close(timeout_s)
        if left:
            print(f"MLflow did not answer for {timeout_s:.0f} s: {left} entries of run {self.run_id} are lost", file=sys.stderr, flush=True)


def attempt(request: Callable[[], None]) -> str | None:
    """Send something: None, or why it must be tried again. What is refused for good is told and dropped: logging ends no training."""
    from mlflow.exceptions import MlflowException

    try:
        request()
    except MlflowException as error:
        if error.error_code in AWAY:
            return str(error)
        print(f"MLflow refused an entry, which is dropped: {str(error)[:300]}", file=sys.stderr, flush=True)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _experiment_id(client: Any, uri: str, experiment: str) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(experiment)
    try:
        return str(known.experiment_id if known else client.create_experiment(experiment, artifact_location(uri)))
    except MlflowException:  # another job of the same name was first
        return str(client.search_experiments(filter_string=f"name = '{experiment}'")[0].experiment_id)


def log_bytes(client: Any, run_id: str, name: str, data: bytes) -> None:
    """A file of a run; `name` may have folders."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(name).name)
        path.write_bytes(data)
        parent = str(Path(name).parent)
        client.log_artifact(run_id, str(path), None if parent == "." else parent)


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


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a server knows of one run; `curves[name]` are (x, value) in the order of x."""

    run_id: str
    name: str
    experiment: str
    status: str
    begun: str
    params: dict[str, str]
    tags: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]


def find_runs(uri: str, experiments: Sequence[str], filter_string: str, run_ids: Sequence[str], most: int) -> list[TrackedRun]:
    """Runs by id, or the newest of these experiments that a filter in MLflow's language lets through, oldest first.

    TrackingError if there is none, or if the filter cannot be read.
    """
    check_tracking(uri)
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    try:
        if run_ids:
            found = [client.get_run(run_id) for run_id in run_ids]
        else:
            known = [one for one in map(client.get_experiment_by_name, experiments) if one is not None]
            ids = [one.experiment_id for one in known]
            found = client.search_runs(ids, filter_string, max_results=most, order_by=["attributes.start_time DESC"])[::-1] if ids else []
        if not found:
            raise TrackingError(f"no run of {', '.join(experiments)} matches {filter_string!r}: look at the experiments with `make mlflow`")
        names = {one.info.experiment_id: client.get_experiment(one.info.experiment_id).name for one in found}
        return [_tracked(uri, one, names[one.info.experiment_id]) for one in found]
    except MlflowException as error:
        raise TrackingError(f"{str(error)[:300]}: correct the filter or the run ids") from error


def _tracked(uri: str, run: Any, experiment: str) -> TrackedRun:
    begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.info.start_time / 1000))
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    return TrackedRun(
        run_id=run.info.run_id, name=run.info.run_name or run.info.run_id[:8], experiment=experiment, status=run.info.status, begun=begun,
        params=dict(run.data.params), tags=tags, curves=read_metrics(uri, run.info.run_id),
    )  # fmt: skip


def register_model(uri: str, name: str, run_id: str, source: str, tags: dict[str, str], files: dict[str, bytes]) -> str:
    """A version of a registered model that belongs to a run; returns its number.

    `files` become the run's artifacts under `source` ("published/v0001"); the server takes a version's source from there.
    """
    check_tracking(uri)
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    try:
        for file, data in files.items():
            log_bytes(client, run_id, f"{source}/{file}", data)
        return str(client.create_model_version(name, f"runs:/{run_id}/{source}", run_id, tags=tags).version)
    except MlflowException as error:
        raise TrackingError(f"{name!r} cannot be registered for run {run_id}: {str(error)[:300]}") from error


def point_model(uri: str, name: str, tag: str, value: str, alias: str = "current") -> str:
    """Move an alias of a registered model to the version that bears a tag; returns its number. TrackingError if none does."""
    client = _client(uri)
    found = [one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get(tag) == value]
    if not found:
        raise TrackingError(f"registered model {name!r} has no version with {tag} = {value}")
    version = max(int(one.version) for one in found)
    client.set_registered_model_alias(name, alias, str(version))
    return str(version)


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _leaves(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
