"""Storage that fails while a training saves: a disk that is full, an S3 server that is killed. What is half written is never read."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.stores import open_store
from tests.corpora import corpus, random_prior
from tests.helpers import ROOT, S3Server, entry_env
from training import checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WEIGHTS = "encoder/diffusion_pytorch_model.safetensors"
STEPS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a prior, and the weights of a run that nothing disturbs (`calm`)."""
    folder = tmp_path_factory.mktemp("storage")
    corpus(folder / "c", photos=4, side_px=96)
    random_prior(folder / "prior")
    done = subprocess.run(command(folder, str(folder / "calm")), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def command(place: Path, output: str, *more: str) -> list[str]:
    sets = ["launch.launcher=local", "engine.kind=plain", "batch.crop_px=32", "batch.short_side_px=48", "batch.global_batch=4",
            "batch.micro_batch=2", "validation.images=1", "validation.every_steps=100", f"steps={STEPS}", "checkpoint.every_steps=2",
            "checkpoint.keep=1", f"prior={place}/prior", *more]  # fmt: skip
    flags = [word for one in sets for word in ("--set", one)]
    return [sys.executable, str(ROOT / "training" / "train_encoder.py"), "--input", str(place / "c"), "--output", output, *flags]


def environment(**more: str) -> dict[str, str]:
    return entry_env(OMP_NUM_THREADS="1", **more)


def can_mount() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small disk is mounted in a namespace of its own, which this machine does not allow")
def test_a_full_disk_is_told_ends_the_training_and_costs_nothing_once_there_is_room(place: Path) -> None:
    disk, seen = place / "disk", place / "seen"
    disk.mkdir()
    files = place.glob("calm/checkpoints/files/*")
    one_kb = sum(path.stat().st_size for path in files) // 1024  # of one checkpoint
    train = shlex.join(command(place, f"{disk}/run"))
    script = f"""
        mount -t tmpfs -o size={one_kb * 3 // 2}k tmpfs {disk}
        {train} > {place}/full.log 2>&1; echo $? > {place}/full.rc
        cp -r {disk}/run/checkpoints {seen}
        mount -o remount,size=1g {disk}
        {train} > {place}/room.log 2>&1; echo $? > {place}/room.rc
        cp -r {disk}/run {place}/continued
    """
    subprocess.run(["unshare", "-rm", "sh", "-c", script], env=environment(), timeout=300, check=True)
    said = Path(place, "full.log").read_text()
    assert Path(place, "full.rc").read_text().strip() == "1", said[-3000:]
    assert "the checkpoint of step 4 could not be saved: no space left for" in said
    assert "2 saves in a row have failed: no space left for" in said
    assert [path.name for path in seen.glob("step-*")] == ["step-00000002.json"]
    assert len(list(seen.glob("files/*"))) == 3, "of the saves that failed nothing is left to fill the disk"
    again = Path(place, "room.log").read_text()
    assert Path(place, "room.rc").read_text().strip() == "0", again[-3000:]
    assert "continuing after step 2" in again
    assert Path(place, "continued", WEIGHTS).read_bytes() == Path(place, "calm", WEIGHTS).read_bytes()


@pytest.mark.chaos
def test_an_s3_server_that_is_killed_during_a_save_costs_that_save_alone(place: Path, s3: str, s3_server: S3Server) -> None:
    """It stays away until the training says so, about half a minute; the next save finds it again."""
    store, log = open_store(f"{s3}/run"), place / "s3.log"
    flags = command(place, store.url, "steps=3000", "checkpoint.every_steps=50")
    with log.open("w") as out:
        process = subprocess.Popen(flags, env=environment(**s3_server.env), stdout=out, stderr=out)
    try:
        wait(lambda: bool(checkpoint.steps(store)), process, log)
        known = set(store_keys(store))
        wait(lambda: any(".weights." in key for key in set(store_keys(store)) - known), process, log)  # the next save has begun
        s3_server.kill()
        wait(lambda: "could not be saved" in log.read_text(), process, log)
    finally:
        s3_server.start()
    failed = int(log.read_text().split("the checkpoint of step ")[1].split()[0])
    wait(lambda: max(checkpoint.steps(store)) > failed, process, log)
    process.kill()
    process.wait()
    assert failed not in checkpoint.steps(store)
    said: list[str] = []
    newest = checkpoint.newest(store, said.append)
    assert newest is not None
    assert newest.meta.step > failed
    assert not said, "nothing was found damaged"


def store_keys(store: object) -> list[str]:
    return [entry.key for entry in store.list("checkpoints")]  # type: ignore[attr-defined]


def wait(ready, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 150) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.01)
