"""Fixtures: one S3 server and one MLflow server a test session, a bucket a test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.helpers import MlflowServer, S3Server, serving

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")  # no machine of a cloud to ask for credentials
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers on two cores: threads that wait for each other cost up to 50 times

settings.register_profile("tree", deadline=None)  # a busy machine is no wrong result
settings.load_profile("tree")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server. A test that kills it starts it again."""
    server = S3Server(tmp_path_factory.mktemp("seaweedfs"))
    with serving(server):
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fresh bucket; the AWS_* variables of this process point to its server."""
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED"]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket(f"b{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on sqlite over HTTP."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    with serving(server):
        yield server
