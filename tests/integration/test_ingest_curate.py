"""Ingest and curate on real parts: Ray and a driver that is killed, an S3 server, a disk that is full."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra.dataset import Dataset
from infra.stores import open_store
from pipelines import curate, export, gc, ingest
from tests.helpers import ROOT, entry_env, photographs, run_entry, shrunk, wait_until
from tests.unit.pipelines.conftest import here  # noqa: F401  (a fixture)
from tests.unit.pipelines.stages.test_fetch import tar_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SMALL = ("--set", "rule.min_short_side=40")


def run(job: Any, *args: object, expect: int = 0) -> None:
    assert job.main([str(arg) for arg in args]) == expect


def digests(dataset: Dataset, *tables: str) -> list[str]:
    return [dataset.snapshot(table).digest for table in tables]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Small photographs, one of them twice, and two files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photographs(6):
        (folder / f"{path.stem}.png").write_bytes(shrunk(path, 96))
    (folder / "again.png").write_bytes(shrunk(photographs(1)[0], 96))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    return folder


@pytest.fixture
def corpus(photos: Path, tmp_path: Path, here: list[str]) -> Path:  # noqa: F811
    """A corpus of one shard a photograph, and `calm` beside it, a copy of it that was curated undisturbed."""
    run(ingest, "--input", photos, "--output", tmp_path / "corpus", "--set", "shard.rows=1")
    shutil.copytree(tmp_path / "corpus", tmp_path / "calm")
    run(curate, "--input", tmp_path / "calm", *SMALL)
    return tmp_path / "corpus"


def start_curate(corpus: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "pipelines/curate.py"), "--input", str(corpus), *SMALL]
    return subprocess.Popen(command, env=entry_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def commits(corpus: Path, table: str) -> int:
    return len([one for one in (corpus / "commits" / table).rglob("*.json") if one.parent.name != "current"])


def check_mended(corpus: Path) -> None:
    """The same command again: equal content, nothing lost, nothing twice; and the sweep leaves what is needed."""
    again = run_entry("pipelines/curate.py", "--input", str(corpus), *SMALL)
    assert again.returncode == 0, again.stderr
    mended, calm = Dataset(str(corpus)), Dataset(str(corpus.parent / "calm"))
    assert digests(mended, "scores", "selections") == digests(calm, "scores", "selections")
    assert mended.snapshot("selections").ledger == calm.snapshot("selections").ledger
    run(gc, "--input", corpus, "--set", "grace_h=0")
    for table in ("images", "scores", "selections"):
        for ref in Dataset(str(corpus)).snapshot(table).shards.values():
            assert Dataset(str(corpus)).read(ref).num_rows == ref.rows


def test_a_driver_that_is_killed_in_curate_and_started_again(corpus: Path) -> None:
    driver = start_curate(corpus)
    wait_until(lambda: commits(corpus, "scores") > 0, "the first shard's commit", timeout_s=120, process=driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not Dataset(str(corpus)).has("selections"), "the kill came too late to disturb anything"
    check_mended(corpus)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_again_and_again(corpus: Path) -> None:
    chance = random.Random(7)
    for _ in range(8):
        driver = start_curate(corpus)
        time.sleep(chance.uniform(2, 20))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    check_mended(corpus)


def test_from_s3_to_s3_and_back_through_tars(s3: str, photos: Path, tmp_path: Path, here: list[str]) -> None:  # noqa: F811
    (photos / "photos.csv").write_text("file,licence\nagain.png,CC0-1.0\n")
    source = open_store(f"{s3}/source")
    for path in photos.iterdir():
        source.put(path.name, path.read_bytes())
    tar = tar_file(tmp_path / "more.tar", [("x.png", shrunk(photographs(8)[7], 96)), ("x.txt", b"a caption"), ("y.png", b"")])
    source.put("deep/more.tar", tar.read_bytes())
    run(ingest, "--input", f"{s3}/source", "--output", f"{s3}/corpus", "--set", "source_name=one", "--set", "shard.rows=4")
    local = tmp_path / "local"
    shutil.copytree(photos, local / "source")
    (local / "source/deep").mkdir()
    shutil.copy(tar, local / "source/deep/more.tar")
    run(ingest, "--input", local / "source", "--output", local / "corpus", "--set", "source_name=one", "--set", "shard.rows=4")
    remote, disk = Dataset(f"{s3}/corpus"), Dataset(str(local / "corpus"))
    assert digests(remote, "images") == digests(disk, "images")
    assert remote.snapshot("images").ledger.failed == {"empty": 2, "not_an_image": 1}
    for dataset in (remote, disk):
        run(curate, "--input", dataset.store.url, *SMALL)
        run(export, "--input", dataset.store.url, "--output", f"{dataset.store.url}-tars", "--set", "captioned=false")
    assert digests(remote, "scores", "selections") == digests(disk, "scores", "selections")
    assert digests(Dataset(f"{s3}/corpus-tars"), "exports") == digests(Dataset(f"{disk.store.url}-tars"), "exports")
    run(gc, "--input", f"{s3}/corpus-tars", "--set", "grace_h=0")
    run(ingest, "--input", f"{s3}/corpus-tars/exports", "--output", f"{s3}/back")
    assert Dataset(f"{s3}/back").snapshot("images").rows == remote.snapshot("selections").ledger.accepted


def test_a_takedown_on_s3_removes_the_objects(s3: str, photos: Path, here: list[str]) -> None:  # noqa: F811
    run(ingest, "--input", photos, "--output", f"{s3}/corpus", "--set", "shard.rows=4")
    dataset = Dataset(f"{s3}/corpus")
    row = dataset.read(dataset.snapshot("images").shards["00001"]).to_pylist()[0]
    run(gc, "--input", f"{s3}/corpus", "--set", f'take_down=["{row["image_id"]}"]', "--set", "why=a test")
    assert not any(row["bytes"] in dataset.store.read(entry.key) for entry in dataset.store.list())
    here.clear()
    run(ingest, "--input", photos, "--output", f"{s3}/corpus", "--set", "shard.rows=4")
    assert here == []


@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_a_missing_bucket_is_told_before_any_work(flag: str, s3: str, photos: Path, tmp_path: Path, here: list[str],  # noqa: F811
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    addresses = {"--input": str(photos), "--output": str(tmp_path / "corpus")} | {flag: "s3://no-such-bucket-here/x"}
    run(ingest, *[part for pair in addresses.items() for part in pair], expect=2)
    assert "no-such-bucket-here" in capsys.readouterr().err
    assert here == []
    assert not (tmp_path / "corpus").exists()


def test_a_disk_that_is_full_is_told_and_the_same_command_continues(photos: Path, tmp_path: Path, here: list[str],  # noqa: F811
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs the right to mount: run as root with CAP_SYS_ADMIN")
    try:
        command = ("--input", photos, "--output", disk / "corpus", "--set", "shard.rows=2")
        run(ingest, *command, expect=2)
        assert "no space left" in capsys.readouterr().err
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        run(ingest, *command)
        run(ingest, "--input", photos, "--output", tmp_path / "calm", "--set", "shard.rows=2")
        assert digests(Dataset(str(disk / "corpus")), "inputs", "images") == digests(Dataset(str(tmp_path / "calm")), "inputs", "images")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
