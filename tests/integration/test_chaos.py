"""`make chaos`: ingest and curate of real photographs on S3 while drivers, workers and the server are killed again and again.

The seed decides when. Each round starts the next command that is not done, and kills something after a while; at the end the
commands are run in peace, and the dataset must equal one that was made on a local disk without an accident.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra.dataset import Dataset, content_digest
from tests.helpers import ROOT, S3Server, entry_env, kill_group

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1700)]

ROUNDS = int(os.environ.get("SUPIR_CHAOS_ROUNDS", "24"))
SEED = int(os.environ.get("SUPIR_CHAOS_SEED", "1"))
WAIT_S = (1.0, 14.0)  # choice: from before the first request to after the last commit of an ingest
VICTIMS = ("driver", "driver and workers", "a worker", "server")
TABLES = ("inputs", "images", "scores", "selections")
RESULT = ROOT / "docs" / "results" / "chaos.md"


def chain(url: str) -> list[list[str]]:
    """The commands: small shards, so that there are commits to interrupt."""
    photos = os.environ.get("SUPIR_PHOTOS", str(ROOT / "examples" / "photos"))
    return [["pipelines/ingest.py", "--input", photos, "--output", url, "--set", "source_name=photos", "--set", "shard.rows=3"],
            ["pipelines/curate.py", "--input", url]]


def run_in_peace(url: str, env: dict[str, str]) -> None:
    for command in chain(url):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


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


def a_round(url: str, env: dict[str, str], server: S3Server, chance: random.Random, tally: Tally) -> None:
    for command in chain(url):
        driver = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, start_new_session=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            driver.wait(chance.uniform(*WAIT_S))
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
        if driver.returncode:
            return


def contents(url: str) -> dict[str, dict[str, str]]:
    """Table -> shard -> digest, computed from the rows that are read, checked against what the commits say."""
    dataset = Dataset(url)
    found: dict[str, dict[str, str]] = {}
    for table in TABLES:
        snapshot = dataset.snapshot(table)
        found[table] = {shard: content_digest(dataset.read(ref)) for shard, ref in snapshot.shards.items()}
        assert found[table] == {shard: ref.digest for shard, ref in snapshot.shards.items()}
    return found


def test_chaos(s3: str, s3_server: S3Server, tmp_path: Path) -> None:
    start = time.monotonic()
    run_in_peace(str(tmp_path / "calm"), entry_env())
    calm_s = time.monotonic() - start
    url, env, chance, tally = f"{s3}/corpus", entry_env(**s3_server.env), random.Random(SEED), Tally()
    for _ in range(ROUNDS):
        a_round(url, env, s3_server, chance, tally)
        if Dataset(url).has("selections"):  # done in spite of all: begin again beside it
            compare(tmp_path, url)
            url = f"{s3}/corpus-{sum(tally.killed.values())}"
    run_in_peace(url, env)
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
    RESULT.write_text(f"""# Chaos: ingest and curate on S3 under kills

    SUPIR_CHAOS_SEED={SEED} SUPIR_CHAOS_ROUNDS={ROUNDS} make chaos

Measured on {os.cpu_count()} cores in {total_s:.0f} s, against a SeaweedFS server. An undisturbed run of both jobs on a local disk took
{calm_s:.0f} s. The photographs of examples/ in shards of three; SIGKILL after {WAIT_S[0]:g} to {WAIT_S[1]:g} s, drawn from the seed.

| killed | times |
| --- | --- |
{rows}

Commands: {ends}. Commits in the store when something was killed: {min(tally.commits_at_kill, default=0)} to \
{max(tally.commits_at_kill, default=0)}.

Result: every dataset that was finished in spite of it, and the last one after the same commands in peace, holds the same rows in the
same shards as the undisturbed one (content digests of {', '.join(TABLES)}, computed from the files that were read), and the same ledgers.
""")
