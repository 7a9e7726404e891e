"""The second job on a table stops; a dead one's lease is void."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra import lease as module
from infra.lease import InUse, lease
from infra.stores import open_store
from tests.helpers import ROOT

HOLD = """
import sys, time
from infra.lease import lease
from infra.stores import open_store
with lease(open_store(sys.argv[1]), "images"):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_stops_and_a_killed_one_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    store, process = open_store(str(tmp_path)), holding(tmp_path)
    try:
        with pytest.raises(InUse, match=rf"'images' in {tmp_path} \(process {process.pid} on "), lease(store, "images"):
            pass
        with lease(store, "scores"):
            pass
    finally:
        process.kill()
        process.wait()
    with lease(store, "images"):
        assert len(list(store.list("leases"))) == 1, "the dead one's record is gone"
    assert list(store.list("leases")) == []


def test_it_is_released_after_an_error_too(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(KeyError), lease(store, "images"):
        raise KeyError
    assert list(store.list("leases")) == []


def foreign(folder: Path, number: int) -> None:
    store = open_store(str(folder))
    record = {"host": "elsewhere", "pid": 1, "started": "5", "since": "2026-01-01T00:00:00+00:00"}
    store.put(f"leases/images/aaaa.{number:08d}.json", json.dumps(record).encode())
    if number > 1:
        store.delete(f"leases/images/aaaa.{number - 1:08d}.json")


def test_another_machine_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    foreign(tmp_path, 1)
    with lease(open_store(str(tmp_path)), "images"):
        pass
    assert "a job on elsewhere was at work here" in capsys.readouterr().out

    foreign(tmp_path, 1)
    ended = threading.Event()

    def renew() -> None:
        number = 1
        while not ended.wait(0.05):
            number += 1
            foreign(tmp_path, number)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(InUse, match="process 1 on elsewhere"), lease(open_store(str(tmp_path)), "images"):
            pass
    finally:
        ended.set()
        thread.join()


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    store = open_store(str(tmp_path))
    with lease(store, "images"):
        first = {entry.key for entry in store.list("leases")}
        until = time.monotonic() + 5
        while {entry.key for entry in store.list("leases")} == first:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert list(store.list("leases")) == []


def test_a_record_cut_off_is_void(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put("leases/images/bbbb.00000001.json", b'{"host"')
    with lease(open_store(str(tmp_path)), "images"):
        pass
    assert list(open_store(str(tmp_path)).list("leases")) == []


def test_a_process_number_that_came_again_is_another_process() -> None:
    import os

    assert module._started(os.getpid()) == module._started(os.getpid()) != ""
    assert module._started(2**22 + 1) == ""
