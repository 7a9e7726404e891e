"""The caption job against a real `transformers serve` with a random LLaVA: killed and started again under load."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.dataset import Dataset
from tests.caption_servers import TransformersServe
from tests.helpers import ROOT, entry_env, images_dataset, photographs, run_entry, serving
from tests.tiny_models import tiny_llava

pytest.importorskip("openai", reason="`transformers serve` needs its types")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]


def flags(dataset: Dataset, server: TransformersServe) -> list[str]:
    changes = [f'captioner.urls=["{server.url}"]', f"captioner.model={server.model}", "captioner.side_px=56", "captioner.image_tokens=16",
               "captioner.max_new_tokens=24", "captioner.timeout_s=20", "captioner.patience_s=120", "captioner.in_flight=4",
               "checks.allow_cut=true", "checks.min_words=1", "checks.plain_english=false", "checks.max_repeated_share=1",
               "checks.max_loop=1000", "workers.workers=2", "workers.cpus=1", "selected_only=false",
               "checks.reasks=0"]  # this server draws from one global seed, so what is sampled under load cannot be made again
    return ["--recipe", "endpoint", "--input", dataset.store.url, *[word for change in changes for word in ("--set", change)]]


def test_a_server_that_is_killed_under_load_costs_no_caption(tmp_path: Path) -> None:
    calm, _ = images_dataset(str(tmp_path / "calm"), photographs(16), per_shard=2, side_px=96)
    rough, _ = images_dataset(str(tmp_path / "rough"), photographs(16), per_shard=2, side_px=96)
    model = tiny_llava(tmp_path / "llava")
    with serving(TransformersServe(tmp_path / "server", model)) as server:
        assert isinstance(server, TransformersServe)
        done = run_entry("pipelines/caption.py", *flags(calm, server))
        assert done.returncode == 0, done.stdout + done.stderr
        ledger = calm.snapshot("captions").ledger
        assert (ledger.total, ledger.failed) == (16, {})
        assert ledger.accepted > 12
        job = subprocess.Popen([sys.executable, str(ROOT / "pipelines/caption.py"), *flags(rough, server)], env=entry_env(), cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        killed = 0
        while job.poll() is None and killed < 2:
            begun = sum(1 for _ in rough.store.list("commits/captions"))
            if begun > 2 * killed:  # under load: some shards are committed, others are on their way
                server.kill()
                killed += 1
                time.sleep(1)
                server.start()
            time.sleep(0.02)
        said, _ = job.communicate(timeout=300)
        assert job.returncode == 0, said
    assert killed, "the job ended before the server could be killed"
    assert rough.snapshot("captions").ledger == ledger, said
    assert rough.snapshot("captions").digest == calm.snapshot("captions").digest
    rows = [row for ref in rough.snapshot("captions").shards.values() for row in rough.read(ref).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows) == ledger.accepted
    assert {(row["engine"], row["seen"]) for row in rows} == {("endpoint", "original")}
