"""`make chaos`: a folder of photographs is captioned on two Ray nodes that read and write S3, and negatives are made of it, while
engine actors and the driver are killed and a node leaves.

Every strike waits for a number of commits, so that it falls between the first and the last. The result must be that of the same command
on a local Ray that nobody disturbed: the same ids, counts and verdicts, and the same content digest (fp32 on the CPU).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.dataset import Dataset, Snapshot
from infra.digest import content_digest
from infra.stores import open_store
from tests.helpers import ROOT, S3Server, entry_env, kill_group, photographs, wait_until
from tests.tiny_models import tiny_llava

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

COUNT = int(os.environ.get("SUPIR_CHAOS_PHOTOS", "18"))  # photographs, one a shard, so that there are commits to strike between
STRIKES = ((1, "engine"), (3, "engine"), (5, "node"), (7, "driver"), (9, "engine"))  # after so many commits of this job
RUNS, RUN_S = 4, 400  # the same command at most so often, and for so long
RESULT = ROOT / "docs" / "results" / "chaos_captions.md"
CAPTIONS = ["--recipe", "llava_13b"]
CAPTION_CHANGES = ["captioner.max_new_tokens=100", "workers.gpus=0", "workers.cpus=1", "workers.workers=2", "checks.allow_cut=true",
                   "checks.plain_english=false", "checks.min_words=32"]  # what the random model says is about so long: some are asked again
NEGATIVES_CHANGES = ["prior=priors/tiny", "negatives.steps=12", "workers.workers=2", "workers.cpus=1", "parents.exclude_heldout=false"]


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@dataclass
class Tally:
    """What happened to one job."""

    struck: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    calm_s: float = 0.0
    rough_s: float = 0.0


@pytest.fixture(scope="module")
def tallies() -> Iterator[dict[str, tuple[Tally, Snapshot]]]:
    """What the tests of this file found; written down if both passed."""
    found: dict[str, tuple[Tally, Snapshot]] = {}
    yield found
    if len(found) == 2:
        write_result(found)


@pytest.fixture
def corpora(s3: str, s3_server: S3Server, tmp_path: Path) -> tuple[Dataset, Dataset]:
    """The same corpus twice on S3, made from a folder of photographs by `pipelines/corpus.py`."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    found = photographs()
    for path in found[::max(1, len(found) // COUNT)][:COUNT]:
        shutil.copy(path, folder)
    command = [sys.executable, "pipelines/corpus.py", "--output", f"{s3}/calm",
               *sets([f'sources=["{folder}"]', "ingest.source_name=photographs", "ingest.shard.rows=1"])]
    done = subprocess.run(command, cwd=ROOT, env=entry_env(**s3_server.env), capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    calm, rough = open_store(f"{s3}/calm"), open_store(f"{s3}/rough")
    for entry in list(calm.list()):
        rough.put(entry.key, calm.read(entry.key))
    return Dataset(calm.url), Dataset(rough.url)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, s3: str) -> Iterator[Any]:
    """A Ray head with one CPU, on the loopback address; a test adds the node that will leave."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    yield cluster
    cluster.shutdown()


def engines() -> list[psutil.Process]:
    """The worker processes of our own nodes that hold a shard actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ShardActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def commits(dataset: Dataset, table: str) -> int:
    return sum(1 for entry in dataset.store.list(f"commits/{table}") if "/current/" not in entry.key)


def disturbed(command: list[str], env: dict[str, str], cluster: Any, dataset: Dataset, table: str, tally: Tally) -> None:
    """Run a command on the cluster, strike after so many commits, and run it again until it ends well."""
    leaving = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    strikes = list(STRIKES)
    while tally.runs < RUNS:
        tally.runs += 1
        with Path(env["SUPIR_TEST_LOG"]).open("ab") as log:
            job = subprocess.Popen(command, cwd=ROOT, env=env | {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=log,
                                   start_new_session=True)
        end = time.monotonic() + RUN_S
        try:
            while job.poll() is None:
                assert time.monotonic() < end, f"the job did not end; it said: {Path(env['SUPIR_TEST_LOG']).read_text()[-3000:]}"
                if strikes and commits(dataset, table) >= strikes[0][0] and strike(strikes[0][1], job, cluster, leaving):
                    tally.struck[strikes.pop(0)[1]] += 1
                time.sleep(0.02)
        finally:
            kill_group(job)
        if job.returncode == 0:
            break
    assert job.returncode == 0, f"ended {tally.runs} times without success; it said: {Path(env['SUPIR_TEST_LOG']).read_text()[-3000:]}"
    assert not strikes, f"the job ended before {strikes}"


def strike(what: str, job: subprocess.Popen[bytes], cluster: Any, leaving: Any) -> bool:
    """Kill, and say whether there was something to kill."""
    if what == "node":
        cluster.remove_node(leaving, allow_graceful=False)
    elif what == "driver":
        job.kill()
        job.wait()
    else:
        found = engines()
        if not found:
            return False
        found[0].kill()
        wait_until(lambda: not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE, "the end of an engine")
    return True


def rows_of(dataset: Dataset, snapshot: Snapshot, columns: list[str]) -> list[dict[str, Any]]:
    return [row for ref in snapshot.shards.values() for row in dataset.read(ref, columns).to_pylist()]


def assert_same(calm: Dataset, rough: Dataset, table: str, columns: list[str]) -> Snapshot:
    """Ids, counts, verdicts and content are equal; the content as it is read, not as the commits say."""
    wanted, found = calm.snapshot(table), rough.snapshot(table)
    assert (found.ledger, found.version) == (wanted.ledger, wanted.version)
    assert rows_of(rough, found, columns) == rows_of(calm, wanted, columns)
    assert {shard: content_digest(rough.read(ref)) for shard, ref in found.shards.items()} == {
        shard: content_digest(calm.read(ref)) for shard, ref in wanted.shards.items()}
    outcomes = [[calm.outcomes(ref) for ref in wanted.shards.values()], [rough.outcomes(ref) for ref in found.shards.values()]]
    assert outcomes[0] == outcomes[1]
    assert found.digest == wanted.digest
    assert commits(rough, table) == len(found.shards), "a shard was committed twice"
    return found


def test_captions(corpora: tuple[Dataset, Dataset], cluster: Any, s3_server: S3Server, tmp_path: Path,
                  tallies: dict[str, tuple[Tally, Snapshot]]) -> None:
    calm, rough = corpora
    flags = [*CAPTIONS, *sets([f"captioner.model={tiny_llava(tmp_path / 'llava')}", *CAPTION_CHANGES])]
    env = entry_env(**s3_server.env, OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", SUPIR_TEST_LOG=str(tmp_path / "said"))
    command = [sys.executable, "pipelines/caption.py", *flags, "--input"]
    tally, start = Tally(), time.monotonic()
    run_in_peace([*command, calm.store.url], env)
    tally.calm_s = time.monotonic() - start
    disturbed([*command, rough.store.url], env, cluster, rough, "captions", tally)
    tally.rough_s = time.monotonic() - start - tally.calm_s
    same = assert_same(calm, rough, "captions", ["image_id", "caption", "verdict", "finish_reason"])
    tally.verdicts = Counter(row["verdict"] for row in rows_of(rough, same, ["verdict"]))
    assert set(tally.verdicts) == {"ok", "ok_after_1"}, "the re-asks are part of what is shown"
    assert same.ledger.rejected["too_short"], "and so are rejections"
    tallies["captions"] = tally, same


def test_negatives(corpora: tuple[Dataset, Dataset], cluster: Any, s3: str, s3_server: S3Server, tmp_path: Path,
                   tallies: dict[str, tuple[Tally, Snapshot]]) -> None:
    source, _ = corpora
    env = entry_env(**s3_server.env, OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", SUPIR_TEST_LOG=str(tmp_path / "said"))
    command = [sys.executable, "pipelines/negatives.py", "--recipe", "tiny", "--input", source.store.url,
               *sets([*NEGATIVES_CHANGES, f"parents.count={COUNT}"]), "--output"]
    tally, start = Tally(), time.monotonic()
    run_in_peace([*command, f"{s3}/negatives-calm"], env)
    tally.calm_s = time.monotonic() - start
    calm, rough = Dataset(f"{s3}/negatives-calm"), Dataset(f"{s3}/negatives-rough")
    disturbed([*command, rough.store.url], env, cluster, rough, "images", tally)
    tally.rough_s = time.monotonic() - start - tally.calm_s
    same = assert_same(calm, rough, "images", ["image_id", "parent_image_id", "prompt", "seed"])
    assert_same(calm, rough, "captions", ["image_id", "caption"])
    tallies["negatives"] = tally, same


def run_in_peace(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def write_result(found: dict[str, tuple[Tally, Snapshot]]) -> None:
    lines = []
    for name, (tally, snapshot) in found.items():
        struck = ", ".join(f"{what} {count}" for what, count in sorted(tally.struck.items()))
        ledger = snapshot.ledger
        lost = ", ".join(f"{reason} {count}" for reason, count in sorted({**ledger.rejected, **ledger.failed}.items())) or "none"
        kept = ", ".join(f"{verdict} {count}" for verdict, count in sorted(tally.verdicts.items())) or "accepted"
        lines.append(f"| {name} | {struck} | {tally.runs} | {ledger.total} = {ledger.accepted} ({kept}); {lost} | {tally.calm_s:.0f} | "
                     f"{tally.rough_s:.0f} | `{snapshot.digest[:16]}` |")
    rows = "\n".join(lines)
    RESULT.write_text(f"""# Chaos: captions and negatives on two nodes and S3, under kills

    SUPIR_PHOTOS=FOLDER make chaos        # tests/integration/test_chaos_captions.py; without it: examples/photos

A folder of {COUNT} photographs, brought to a SeaweedFS server by `pipelines/corpus.py` in shards of one, then
`pipelines/caption.py` (recipe `llava_13b` with a LLaVA of random weights, fp32 on the CPU, greedy, faulty captions asked again)
and `pipelines/negatives.py` (the shipped prior) on a Ray cluster of two nodes on the loopback address, one worker a node.
SIGKILL to the processes of engine actors and to the driver, and a node that leaves for good, each after a number of commits;
the same command again where the driver was killed or Ray gave up. Measured on {os.cpu_count()} cores that others used too. The
undisturbed run is the same command on a local Ray, on the same server.

| job | killed | runs of the command | rows | undisturbed, s | under kills, s | content digest of both |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Result: the same ids, counts, verdicts, reasons of rejection and content digests (computed from the rows that are read) as
undisturbed; every shard has one commit. Not tried: GPUs, more than one machine.
""")
