"""The caption job against a real `transformers serve` with a random LLaVA: killed and started again under load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.dataset import Dataset
from pipelines import caption
from pipelines.runtime.cluster import connection
from tests.caption_servers import TransformersServe
from tests.helpers import images_dataset, photographs, serving
from tests.tiny_models import tiny_llava

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
KILLED_AFTER = 3  # shards of eight


def flags(dataset: Dataset, server: TransformersServe) -> list[str]:
    changes = [f'captioner.urls=["{server.url}"]', f"captioner.model={server.model}", "captioner.side_px=56", "captioner.image_tokens=16",
               "captioner.max_new_tokens=24", "captioner.timeout_s=20", "captioner.patience_s=120", "captioner.in_flight=4",
               "checks.allow_cut=true", "checks.min_words=1", "checks.plain_english=false", "checks.max_repeated_share=1",
               "checks.max_loop=1000", "workers.workers=2", "workers.cpus=1", "selected_only=false",
               "checks.reasks=0"]  # this server draws from one global seed, so what is sampled under load cannot be made again
    return ["--recipe", "endpoint", "--input", dataset.store.url, *[word for change in changes for word in ("--set", change)]]


def commits(dataset: Dataset) -> int:
    return sum(1 for entry in dataset.store.list("commits/captions") if "/current/" not in entry.key)


def test_a_server_that_is_killed_under_load_costs_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, _ = images_dataset(str(tmp_path / "calm"), photographs(16), per_shard=2, side_px=96)
    rough, _ = images_dataset(str(tmp_path / "rough"), photographs(16), per_shard=2, side_px=96)
    model = tiny_llava(tmp_path / "llava")
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with connection(), serving(TransformersServe(tmp_path / "server", model)) as server, ThreadPoolExecutor(1) as beside:
        assert isinstance(server, TransformersServe)
        assert caption.main(flags(calm, server)) == 0
        ledger = calm.snapshot("captions").ledger
        assert (ledger.total, ledger.failed) == (16, {})
        assert ledger.accepted > 12
        job = beside.submit(caption.main, flags(rough, server))
        while commits(rough) < KILLED_AFTER:
            assert not job.done(), "the job ended before the server could be killed"
            time.sleep(0.02)
        server.kill()
        assert commits(rough) < 8, "nothing was on its way any more"
        time.sleep(1)
        server.start()
        assert job.result(timeout=300) == 0
    assert rough.snapshot("captions").ledger == ledger
    assert rough.snapshot("captions").digest == calm.snapshot("captions").digest
    rows = [row for ref in rough.snapshot("captions").shards.values() for row in rough.read(ref).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows) == ledger.accepted
    assert {(row["engine"], row["seen"]) for row in rows} == {("endpoint", "original")}
