"""The driver of the demo: its commands, what it remembers, what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.jobs.chain import chain
from infra.jobs.demo import Shown
from infra.jobs.demo_record import DemoRecord, JobRecord
from infra.jobs.process_tree import PeakMemory, descendants
from tests.helpers import ROOT, run_entry


def test_every_command_names_a_script_and_a_workspace() -> None:
    steps = chain("work space")
    assert [step.job for step in steps] == [
        "ingest",
        "curate",
        "caption",
        "negatives",
        "train_encoder",
        "train_adaptor",
        "score",
        "restore",
        "report",
    ]
    assert all((ROOT / step.arguments[0]).is_file() for step in steps)
    assert all("'work space" in step.command for step in steps), "a name with a space is quoted as a shell wants it"


def test_dry_run_prints_the_commands(tmp_path: Path) -> None:
    said = run_entry("infra/jobs/demo.py", "--dry-run", "--workspace", str(tmp_path), cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.splitlines()) == len(chain("x"))
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_seconds_add_up_over_attempts_and_finding_it_done_is_apart() -> None:
    job = JobRecord(job="x", command="x")
    job.add(10, 1.0, done=False)
    job.add(30, 2.0, done=True)
    assert (job.seconds, job.peak_gib, job.done) == (40.0, 2.0, True)
    job.add(2, 0.5, done=True)
    assert (job.seconds, job.again_s, job.peak_gib) == (40.0, 2.0, 2.0)
    job.add(50, 1.0, done=True)
    assert job.seconds == 50.0, "a longer run did the work anew"


def test_record_survives_and_forgets_other_commands(tmp_path: Path) -> None:
    steps = chain("w")
    record = DemoRecord.load(tmp_path, steps, {})
    for job in record.jobs:
        job.add(1, None, done=True)
    record.complete = True
    record.save()
    assert DemoRecord.load(tmp_path, steps, {}).complete
    other = DemoRecord.load(tmp_path, chain("elsewhere"), {})
    assert not other.complete
    assert other.jobs[0].seconds is None
    (tmp_path / "demo.json").write_text("[]")
    assert not DemoRecord.load(tmp_path, steps, {}).complete, "a broken record is no record"


def test_the_configuration_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    for line in ("ingest --recipe tiny", "{", '  "input": 1', "}", "", "4 shards"):
        shown.show(line)
    assert capsys.readouterr().out == "  ingest --recipe tiny\n  4 shards\n"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_a_tree_is_seen() -> None:
    held = "import time; x = bytearray(80_000_000); x[::4096] = b'x' * len(x[::4096]); time.sleep(1.6)"
    with PeakMemory() as peak:
        child = subprocess.Popen([sys.executable, "-c", held])
        assert child.pid in descendants(os.getpid())
        child.wait()
    assert peak.peak_bytes > 80_000_000
