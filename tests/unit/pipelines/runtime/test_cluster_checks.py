"""What is asked of a cluster before work is given to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from pipelines.runtime import cluster
from pipelines.runtime.stage import result_config
from tests.helpers import free_port


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match=r"cannot use the Ray cluster at RAY_ADDRESS=127\.0\.0\.1:\d+ .*unset RAY_ADDRESS"):
        with cluster.connection():
            pass


@pytest.mark.parametrize("address", ["local", "auto", "http://127.0.0.1:1"])
def test_what_is_not_host_and_port_is_left_to_ray(address: str) -> None:
    cluster._check_answers(address)


@dataclass(frozen=True)
class Inner:
    kept: int = 1
    place: str = field(default="/here", metadata={"result": False})


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(kept=2), Inner(kept=3))
    batch_size: int = field(default=4, metadata={"result": False})


def test_neutral_fields_of_groups_do_not_count() -> None:
    stage = Outer()
    assert result_config(stage) == {"inner": {"kept": 1}, "many": [{"kept": 2}, {"kept": 3}]}  # type: ignore[arg-type]
    assert result_config(replace(stage, inner=Inner(place="/there"))) == result_config(stage)  # type: ignore[arg-type]
    json.dumps(result_config(stage))  # type: ignore[arg-type]
