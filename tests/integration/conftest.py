"""Fixtures of tests that run whole jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.runtime.cluster import connection


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """One local Ray for all jobs of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with connection():
            yield
