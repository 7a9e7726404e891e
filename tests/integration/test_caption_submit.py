"""`ray job submit` of a job and of a training against a head that the test starts: the state of the job, the exit code, what is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from infra.dataset import Dataset
from tests import corpora
from tests.helpers import ROOT, answers, commit_table, entry_env, images_dataset, kill_group, photographs, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
TOKEN = uuid.uuid4().hex


@dataclass(frozen=True)
class Head:
    """A Ray head with its dashboard on the loopback address, behind a token."""

    address: str
    env: dict[str, str]

    def submit(self, *command: str) -> tuple[subprocess.CompletedProcess[str], str]:
        """(what `ray job submit` said, the job's final state)."""
        job = f"test-{uuid.uuid4().hex[:8]}"
        ray = str(Path(sys.executable).parent / "ray")
        submit = [ray, "job", "submit", "--address", self.address, "--submission-id", job, "--working-dir", ".", "--"]
        done = subprocess.run([*submit, *command], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=180, check=False)
        asked = urllib.request.Request(f"{self.address}/api/jobs/{job}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return done, json.load(answer)["status"]


def start_head(folder: Path, env: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """(process, address of the dashboard). AssertionError with the head's own words if it does not come up."""
    with contextlib.ExitStack() as held:  # held together, so that no port is given out twice
        probes = [held.enter_context(socket.socket()) for _ in range(5)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        port, dashboard, client, agent, metrics = (probe.getsockname()[1] for probe in probes)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2",
               f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
               f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
               "--object-store-memory=100000000", "--disable-usage-stats"]
    log = Path(folder, "head.log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), "the head", process=process)
    except AssertionError as error:
        kill_group(process)
        raise AssertionError(f"{error}; it said: {log.read_text(errors='replace')[-2000:]}") from error
    return process, f"http://127.0.0.1:{dashboard}"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the names of sockets are at most 107 bytes long
    env = entry_env(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    try:
        process, address = start_head(folder, env)
        try:
            yield Head(address, env)
        finally:
            kill_group(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset, images = images_dataset(str(tmp_path_factory.mktemp("corpus")), photographs(5), per_shard=3, side_px=128)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array([i != 1 for i in range(t.num_rows)])) for t in rows])
    return dataset


def test_a_submitted_job_succeeds_and_a_second_one_finds_nothing_to_do(head: Head, corpus: Dataset) -> None:
    a_pool_that_grows = ("--set", "workers.workers=0")
    command = ("python", "pipelines/caption.py", "--recipe", "tiny", "--input", corpus.store.url, *a_pool_that_grows)
    done, state = head.submit(*command)
    assert (done.returncode, state) == (0, "SUCCEEDED"), done.stdout + done.stderr
    assert "caption: 5 in = 3 accepted + 2 rejected + 0 failed (not_selected 2)" in done.stdout
    snapshot = corpus.snapshot("captions")
    rows = [row for ref in snapshot.shards.values() for row in corpus.read(ref).to_pylist()]
    assert len(rows) == 3
    assert all(row["caption"].startswith("A ") and row["clip_tokens"] > 10 for row in rows)
    again, state = head.submit(*command)
    assert (again.returncode, state) == (0, "SUCCEEDED")
    assert "nothing was pending" in again.stdout
    assert corpus.snapshot("captions") == snapshot


def test_a_job_that_cannot_run_is_failed_and_says_why(head: Head, corpus: Dataset) -> None:
    flags = ("--recipe", "llava_13b", "--set", "captioner.model=/nowhere/llava")
    done, state = head.submit("python", "pipelines/caption.py", "--input", corpus.store.url, *flags)
    assert state == "FAILED"
    assert done.returncode != 0
    assert "caption: no folder of weights at '/nowhere/llava'" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_submitted_training_ends_with_weights(head: Head, tmp_path: Path) -> None:
    """Ray Train on the cluster that the job runs on: no Ray of its own, the code from the job's working directory."""
    data, prior = corpora.corpus(tmp_path / "c", photos=4, side_px=96), corpora.random_prior(tmp_path / "prior")
    sizes = {"launch.workers": 1, "steps": 2, "batch.crop_px": 32, "batch.short_side_px": 48, "batch.global_batch": 2,
             "batch.micro_batch": 2, "validation.images": 1, "prior": prior}  # fmt: skip
    sets = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    done, state = head.submit("python", "training/train_encoder.py", "--input", data, "--output", str(tmp_path / "run"), *sets)
    assert (done.returncode, state) == (0, "SUCCEEDED"), done.stdout[-3000:] + done.stderr[-3000:]
    assert "step 2/2  loss" in done.stdout
    assert Path(tmp_path, "run", "encoder", "config.json").exists()


def test_without_the_token_nobody_submits(head: Head, corpus: Dataset) -> None:
    stranger = {**head.env, "RAY_AUTH_TOKEN": "wrong"}
    ray = str(Path(sys.executable).parent / "ray")
    done = subprocess.run([ray, "job", "submit", "--address", head.address, "--", "python", "pipelines/caption.py"], cwd=ROOT, env=stranger,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0


def test_the_submit_lines_tell_what_a_job_will_take(head: Head, corpus: Dataset) -> None:
    jobs, told = ROOT / "infra" / "jobs", json.dumps({"env_vars": {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}})
    before = ["--recipe", "tiny", "--dry-run", "--calibrate", "2", "--set", "workers.price_per_hour=36000"]
    lines = {"caption": ([str(jobs / "caption.sh"), corpus.store.url, *before, "--set", "checks.min_words=3"], "5 rows"),
             "negatives": ([str(jobs / "negatives.sh"), corpus.store.url, f"{corpus.store.url}-negatives", *before, "--set",
                            "parents.count=2", "--set", "parents.exclude_heldout=false", "--set", "negatives.size_px=32"], "5 rows")}
    for name, (line, pending) in lines.items():
        done = subprocess.run(line, env={**head.env, "RAY_ADDRESS": head.address, "RUNTIME_ENV": told}, cwd=os.path.dirname(ROOT),
                              capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"{name}: table '\w+' version \w+: 2 shards, 0 done, 2 pending \({pending}\)", done.stdout), done.stdout
        assert "cluster: 2 CPUs, 0 GPUs on 1 nodes" in done.stdout
        assert re.search(rf"{name}: measured on \d rows after a warm-up: [\d.]+ rows/s a worker, \d+ s to set up, [\d.]+ GiB of memory; "
                         r"\d rows on \d workers: [\d.]+ hours, cost [\d.,]+", done.stdout), done.stdout
