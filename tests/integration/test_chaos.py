"""`make chaos`: a corpus on S3, from a folder and from a web server, while drivers, workers and the S3 server are killed again and again.

The seed decides when. Each round starts the command and kills something after a while; at the end it is run in peace, and the dataset must
equal one that was made on a local disk without an accident.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from infra.dataset import Dataset
from infra.digest import content_digest
from tests.helpers import ROOT, S3Server, entry_env, free_port, kill_group, photographs, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1700)]

ROUNDS = int(os.environ.get("SUPIR_CHAOS_ROUNDS", "24"))
SEED = int(os.environ.get("SUPIR_CHAOS_SEED", "1"))
WAIT = (0.2, 1.0)  # choice, of an undisturbed run on a local disk: from before the first request to just before the last commit on S3
VICTIMS = ("driver", "driver and workers", "a worker", "server")
TABLES = ("inputs", "images", "scores", "selections")
PHOTOS = Path(os.environ.get("SUPIR_PHOTOS", ROOT / "examples" / "photos")).resolve()
RESULT = ROOT / "docs" / "results" / "chaos.md"


def command(url: str, table: Path) -> list[str]:
    """From sources to a selection: small shards, so that there are commits to interrupt."""
    sources = ["--set", f'sources=["{PHOTOS}", "urls={table}"]', "--set", "ingest.source_name=photos", "--set", "ingest.shard.rows=3"]
    web = ["--set", "ingest.web.contact=chaos@example.org", "--set", 'ingest.web.allow_networks=["127.0.0.1/32"]']
    return [sys.executable, "pipelines/corpus.py", "--output", url, *sources, *web]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Path]:
    """Addresses of the same photographs, and of one that is not there, on a web server in a process of its own."""
    port = free_port()
    serve = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(PHOTOS)]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        names = [*(path.name for path in photographs()), "missing.jpg"]
        made = tmp_path / "urls.csv"
        rows = [f"http://127.0.0.1:{port}/{quote(name)},CC0-1.0,a picture" for name in names]
        made.write_text("\n".join(["url,license,caption", *rows]) + "\n")
        wait_until(lambda: can_connect(port), "the web server")
        yield made
    finally:
        server.kill()
        server.wait()


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run_in_peace(url: str, table: Path, env: dict[str, str]) -> None:
    done = subprocess.run(command(url, table), cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass
class Tally:
    """What happened."""

    killed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    commits_at_kill: list[int] = field(default_factory=list)


def strike(victim: str, driver: subprocess.Popen[bytes], server: S3Server) -> str:
    """Kill, and say what was killed in fact."""
    family = psutil.Process(driver.pid).children(recursive=True)
    workers = [one for one in family if "ShardActor" in " ".join(cmdline(one))]
    if victim == "server":
        server.kill()
        time.sleep(1)
        server.start()
    elif victim == "a worker" and workers:
        workers[0].kill()
    elif victim == "driver and workers":
        for one in [*family, psutil.Process(driver.pid)]:
            one.kill() if one.is_running() else None
    else:
        victim = "driver"
        driver.kill()
    return victim


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def a_round(url: str, table: Path, env: dict[str, str], server: S3Server, chance: random.Random, tally: Tally,
            calm_s: float) -> None:
    driver = subprocess.Popen(command(url, table), cwd=ROOT, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE)
    try:
        driver.wait(chance.uniform(*WAIT) * calm_s)
    except subprocess.TimeoutExpired:
        victim = strike(chance.choice(VICTIMS), driver, server)
        tally.killed[victim] += 1
        tally.commits_at_kill.append(sum(1 for _ in Dataset(url).store.list("commits")))
        if victim in ("driver", "driver and workers"):
            driver.wait()
            kill_group(driver)
            tally.ended["killed"] += 1
            return
    _, error = driver.communicate(timeout=300)
    tally.ended["done" if driver.returncode == 0 else "stopped with a message"] += 1
    assert driver.returncode in (0, 2), f"ended with {driver.returncode}: {error.decode()[-2000:]}"


def contents(url: str) -> dict[str, dict[str, str]]:
    """Table -> shard -> digest, computed from the rows that are read, checked against what the commits say."""
    dataset = Dataset(url)
    found: dict[str, dict[str, str]] = {}
    for table in TABLES:
        snapshot = dataset.snapshot(table)
        found[table] = {shard: content_digest(dataset.read(ref)) for shard, ref in snapshot.shards.items()}
        assert found[table] == {shard: ref.digest for shard, ref in snapshot.shards.items()}
    return found


def test_chaos(s3: str, s3_server: S3Server, table: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    run_in_peace(str(tmp_path / "calm"), table, entry_env())
    calm_s = time.monotonic() - start
    url, env, chance, tally = f"{s3}/corpus", entry_env(**s3_server.env), random.Random(SEED), Tally()
    for _ in range(ROUNDS):
        a_round(url, table, env, s3_server, chance, tally, calm_s)
        if Dataset(url).has("selections"):  # done in spite of all: begin again beside it
            compare(tmp_path, url)
            url = f"{s3}/corpus-{sum(tally.killed.values())}"
    run_in_peace(url, table, env)
    compare(tmp_path, url)
    assert sum(tally.killed.values()) >= ROUNDS // 2, "the kills came too late to disturb anything"
    write_result(tally, time.monotonic() - start, calm_s)


def compare(tmp_path: Path, url: str) -> None:
    """Equal rows in equal shards, and equal ledgers; `inputs` names its address in a column, the same photographs in both."""
    calm = str(tmp_path / "calm")
    assert contents(url) == contents(calm)
    for table in TABLES:
        assert Dataset(url).snapshot(table).ledger == Dataset(calm).snapshot(table).ledger


def write_result(tally: Tally, total_s: float, calm_s: float) -> None:
    rows = "\n".join(f"| {victim} | {count} |" for victim, count in sorted(tally.killed.items()))
    ends = ", ".join(f"{count} {how}" for how, count in sorted(tally.ended.items()))
    RESULT.write_text(f"""# Chaos: a corpus from a folder and the web, on S3, under kills

    SUPIR_CHAOS_SEED={SEED} SUPIR_CHAOS_ROUNDS={ROUNDS} make chaos

Measured on {os.cpu_count()} cores in {total_s:.0f} s, against a SeaweedFS server. An undisturbed run on a local disk took
{calm_s:.0f} s. One command (`pipelines/corpus.py`): {len(photographs())} photographs from a folder and
again from a web server on loopback, in shards of three; ingest, measures, selection.
SIGKILL after {WAIT[0] * calm_s:.1f} to {WAIT[1] * calm_s:.1f} s, drawn from the seed.

| killed | times |
| --- | --- |
{rows}

The command: {ends}. Commits in the store when something was killed: {min(tally.commits_at_kill, default=0)} to \
{max(tally.commits_at_kill, default=0)}.

Result: every dataset that was finished in spite of it, and the last one after the same commands in peace, holds the same rows in the
same shards as the undisturbed one (content digests of {', '.join(TABLES)}, computed from the files that were read), and the same ledgers.
""")
