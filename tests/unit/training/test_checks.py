"""Pre-flight on the workers: each failure names its cure. Between two workers: tests/integration/test_training.py."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from infra.local_store import LocalStore
from infra.stores import open_store
from training import checks, worker
from training.loop import Place
from training.recipes import encoder_tiny

ALONE = Place(rank=0, world=1, device=torch.device("cpu"))


class Step(torch.nn.Module):
    def __init__(self, loss: float) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.tensor(self.loss), {}


class Stage:
    name = "encoder"

    def __init__(self, loss: float) -> None:
        self.step = Step(loss)

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return {"samples": samples}


def test_a_gpu_that_was_asked_for_and_is_not_there() -> None:
    config = encoder_tiny()
    checks.check_device(config, ALONE)
    asked = replace(config, launch=replace(config.launch, gpus_per_worker=1))
    with pytest.raises(ValueError, match=r"worker 0 on .*torch sees no GPU: .*launch\.gpus_per_worker=0"):
        checks.check_device(asked, ALONE)


def test_the_device_that_ray_gave_is_the_one_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed reads LOCAL_RANK, NCCL's collectives of objects the current device: both are what Ray gave, whatever the rank."""
    taken: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(f"set {device}"))
    monkeypatch.setattr(checks, "check_device", lambda config, place: taken.append(f"checked {place.device}"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    pool = pa.default_memory_pool()
    worker._settle(encoder_tiny(), open_store(str(tmp_path)), Place(rank=0, world=1, device=torch.device("cuda:3")))
    pa.set_memory_pool(pool)
    assert taken == ["checked cuda:3", "set cuda:3"]
    assert os.environ["LOCAL_RANK"] == "3"


def peer(store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=1, world_size=2)
    os._exit(0)  # it has joined, and is gone


def test_workers_that_cannot_sum(tmp_path: Path) -> None:
    """A real group of two, of which one leaves before the sum."""
    other = multiprocessing.get_context("fork").Process(target=peer, args=(f"{tmp_path}/group",))
    other.start()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=2)
    try:
        other.join()
        with pytest.raises(ValueError, match=r"worker 0 on .*: gloo cannot sum over 2 workers .*set GLOO_SOCKET_IFNAME to the interface"):
            checks.check_group(replace(ALONE, world=2))
    finally:
        dist.destroy_process_group()
    checks.check_group(ALONE)


def test_storage_that_takes_and_gives_leaves_nothing(tmp_path: Path) -> None:
    checks.check_storage(open_store(str(tmp_path)), ALONE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file where a folder must be")
    with pytest.raises(ValueError, match=r"cannot be written .*choose another --output"):
        checks.check_storage(open_store(str(tmp_path)), ALONE)


def test_a_folder_that_only_one_node_has(tmp_path: Path) -> None:
    class Elsewhere(LocalStore):
        def read(self, key: str) -> bytes:
            return LocalStore(str(tmp_path / "of another node")).read(key)

    with pytest.raises(ValueError, match=r"what the first worker wrote is not there .*a folder that all nodes share"):
        checks.check_storage(Elsewhere(str(tmp_path)), ALONE)


def test_a_first_batch_that_does_not_go_through() -> None:
    def wrong() -> list[Any]:
        raise KeyError("caption")

    checks.check_batch(Stage(0.5), list, ALONE)
    with pytest.raises(ValueError, match=r"KeyError.*look at the data and the weights"):
        checks.check_batch(Stage(0.5), wrong, ALONE)
    with pytest.raises(ValueError, match="loss of the first batch is nan"):
        checks.check_batch(Stage(float("nan")), list, ALONE)
