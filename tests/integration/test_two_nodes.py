"""Captions on two Ray nodes on the loopback address, one of which is taken away under way: the rows of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, entry_env, images_dataset, photographs, run_entry
from tests.tiny_models import tiny_llava

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_a_node_that_leaves_costs_its_shards_in_flight_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    calm, _ = images_dataset(str(tmp_path / "calm"), photographs(16), per_shard=1, side_px=96)
    rough, _ = images_dataset(str(tmp_path / "rough"), photographs(16), per_shard=1, side_px=96)
    changes = [f"captioner.model={tiny_llava(tmp_path / 'llava')}", "captioner.max_new_tokens=100", "workers.gpus=0", "workers.cpus=1",
               "workers.workers=2", "checks.allow_cut=true", "checks.min_words=1", "checks.plain_english=false", "selected_only=false",
               "checks.max_loop=1000", "checks.max_repeated_share=1", "captioner.canary=false"]
    flags = ["--recipe", "llava_13b", *[word for change in changes for word in ("--set", change)]]
    one_thread = {"OMP_NUM_THREADS": "1"}  # several workers share few cores
    done = run_entry("pipelines/caption.py", "--input", calm.store.url, *flags, env=one_thread, timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    try:
        leaving = cluster.add_node(num_cpus=1, object_store_memory=10**8)
        env = entry_env(RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled", PYTHONPATH=str(ROOT), **one_thread)
        job = subprocess.Popen([sys.executable, str(ROOT / "pipelines/caption.py"), "--input", rough.store.url, *flags], env=env, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = 0
        while job.poll() is None and before < 3:
            before = sum(1 for _ in rough.store.list("commits/captions"))
            time.sleep(0.02)
        assert job.poll() is None, job.communicate()[0]
        cluster.remove_node(leaving, allow_graceful=False)
        said, _ = job.communicate(timeout=500)
    finally:
        cluster.shutdown()
    if job.returncode:  # Ray may give up; then the same command continues
        done = run_entry("pipelines/caption.py", "--input", rough.store.url, *flags, env=one_thread, timeout_s=400)
        assert done.returncode == 0, said + done.stdout + done.stderr
    assert before < 16, "everything was done before the node left"
    found, wanted = rough.snapshot("captions"), calm.snapshot("captions")
    assert (found.ledger, found.digest) == (wanted.ledger, wanted.digest)
    records = [entry.key for entry in rough.store.list("commits/captions") if "/current/" not in entry.key]
    assert len(records) == 16, "a shard was committed twice"
