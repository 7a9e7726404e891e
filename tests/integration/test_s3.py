"""The S3 store against a real server: conditional creation, errors, and a server that is killed in the middle of things."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, ClassVar

import pytest

from infra import s3 as s3_module
from infra import versions
from infra.dataset import Dataset
from infra.lease import InUse, lease
from infra.storage import NotFound, StorageError
from infra.stores import open_store
from tests.helpers import ROOT, S3Server, images_dataset, photographs, wait_until
from tests.toys import Measure, run_here, toy_images

pytestmark = pytest.mark.integration

QUICK_S = 15  # an error that another try would not mend is told in this time, the start of Python included


def test_what_is_put_is_read_listed_and_deleted(s3: str) -> None:
    store = open_store(f"{s3}/ds")
    store.check(write=True)
    for key in ("b/2.bin", "a.bin", "b/1.bin", "bb/0.bin"):
        store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == ["a.bin", "b/1.bin", "b/2.bin", "bb/0.bin"]
    assert [(entry.key, entry.size_bytes) for entry in store.list("b")] == [("b/1.bin", 7), ("b/2.bin", 7)]
    assert [entry.key for entry in store.child("b").list()] == ["1.bin", "2.bin"]
    assert [entry.key for entry in open_store(s3).list("ds/b")] == ["ds/b/1.bin", "ds/b/2.bin"]
    store.put("odd/na\u00efve +%20&=#1.bin", b"")
    assert [entry.key for entry in store.list("odd")] == ["odd/na\u00efve +%20&=#1.bin"]
    with store.open("a.bin") as file:
        file.seek(2)
        assert file.read() == b"bin"
    assert store.size("a.bin") == 5
    store.delete("b/1.bin")
    store.delete("b/1.bin")
    assert not store.exists("b/1.bin")
    assert not store.exists("b"), "a prefix is not an object"
    assert list(store.list("missing")) == []
    for access in (store.read, store.open, store.size):
        with pytest.raises(NotFound, match=r"ds/b/1\.bin does not exist"):
            access("b/1.bin")


def test_what_is_written_in_parts_is_whole_or_absent(s3: str) -> None:
    store = open_store(f"{s3}/parts")
    piece = bytes(range(256)) * 4096  # 1 MiB

    def write(file: BinaryIO, break_at: int = -1) -> None:
        for number in range(40):
            if number == break_at:
                raise RuntimeError("the encoder broke")
            file.write(piece)

    store.write("whole", write)
    for break_at in (1, 39):  # before the first part is sent, and behind it
        with pytest.raises(RuntimeError):
            store.write("broken", partial(write, break_at=break_at))
    assert store.read("whole") == piece * 40
    assert [entry.key for entry in store.list()] == ["whole"]


def test_a_listing_longer_than_a_page_is_complete_and_in_order(s3: str) -> None:
    store = open_store(f"{s3}/many")
    keys = [f"{i:04d}" for i in range(1100)]  # a page of S3 holds 1000
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [entry.key for entry in store.list()] == keys


def test_create_is_conditional(s3: str) -> None:
    store = open_store(s3)
    assert store.create("c/x.json", b"one")
    assert not store.create("c/x.json", b"two")
    assert store.create("c/x.json", b"one"), "our own data: the first try arrived and only its answer was lost"
    assert store.read("c/x.json") == b"one"


def test_of_many_threads_one_creates(s3: str) -> None:
    store = open_store(s3)
    for race in range(2):  # the server takes seconds for each
        start = threading.Barrier(8)

        def attempt(i: int, race: int = race, start: threading.Barrier = start) -> bool:
            start.wait()
            return store.create(f"race/{race}", b"%d" % i)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(attempt, range(8)))
        assert sum(won) == 1
        assert store.read(f"race/{race}") == b"%d" % won.index(True)


def test_threads_share_one_connection_and_a_forked_child_makes_its_own(s3: str) -> None:
    store = open_store(s3)
    store.put("a", b"1")
    with ThreadPoolExecutor(8) as pool:
        assert len({id(fs) for fs in pool.map(lambda _: s3_module._connect(), range(32))}) == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read("a") == b"1" and store.create("from-child", b"2") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read("from-child") == b"2"


def test_photographs_come_back_byte_for_byte(s3: str) -> None:
    _, snapshot = images_dataset(f"{s3}/corpus", photographs(4), per_shard=2, side_px=512)
    again = Dataset(f"{s3}/corpus")
    assert again.snapshot("images") == snapshot
    for ref in snapshot.shards.values():
        rows = again.read(ref).to_pylist()
        assert all(hashlib.sha256(row["bytes"]).hexdigest() == row["image_id"] for row in rows)
    assert again.tables() == ["images"]


def test_a_job_on_s3_gives_what_it_gives_on_a_disk(s3: str, tmp_path: Path) -> None:
    results = [run_here(Measure(threshold=300), dataset, toy_images(dataset, [3, 0, 2]))
               for dataset in (Dataset(str(tmp_path)), Dataset(f"{s3}/toy"))]
    assert results[0].digest == results[1].digest
    assert results[0].ledger == results[1].ledger


class Busy(BaseHTTPRequestHandler):
    """S3 that asks for patience before it takes an object."""

    protocol_version = "HTTP/1.1"  # an S3 client waits for "100 Continue"
    answers: ClassVar[list[int]] = []

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answers.append(503 if len(self.answers) < 2 else 200)
        body = b"" if self.answers[-1] == 200 else b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
        self.send_response(self.answers[-1])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_server_that_asks_to_slow_down_is_waited_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        open_store("s3://bucket/prefix").put("a", b"1")
    finally:
        server.shutdown()
    assert Busy.answers == [503] * 2 + [200]


PROBE = """
import sys
from infra.storage import StorageError
from infra.stores import open_store
store = open_store(sys.argv[1])
for call in (store.check, lambda: store.put("key", b"1"), lambda: store.read("key"), lambda: list(store.list())):
    try:
        call()
        print("ok")
    except StorageError as error:
        print(str(error).replace(chr(10), " "))
    if "once" in sys.argv:
        break
"""


def probe(url: str, *flags: str, **env: str | None) -> list[str]:
    """What a process with other AWS_* variables is told by each kind of call."""
    told = {**os.environ, **{name: value for name, value in env.items() if value is not None}}
    for name, value in env.items():
        if value is None:
            told.pop(name, None)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROBE, url, *flags], cwd=ROOT, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < QUICK_S, f"took {time.monotonic() - start:.0f} s"
    assert S3Server.SECRET not in done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("env", [{"AWS_ACCESS_KEY_ID": "nobody"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}])
def test_wrong_credentials_are_told_quickly(s3: str, env: dict[str, str]) -> None:
    lines = probe(f"{s3}/ds", **env)
    assert len(lines) == 4
    assert all("access denied" in line and "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line for line in lines), lines


def test_no_credentials_are_told_quickly(s3: str) -> None:
    lines = probe(f"{s3}/ds", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME="/nonexistent")
    assert all("no credentials found" in line and "set AWS_ACCESS_KEY_ID" in line for line in lines), lines


def test_a_missing_bucket_is_named_by_every_call(s3: str) -> None:
    lines = probe("s3://no-such-bucket/ds")
    assert all("bucket 'no-such-bucket' does not exist: create it, or correct the address" in line for line in lines), lines
    store = open_store("s3://no-such-bucket/ds")
    for call in (lambda: store.create("k", b""), lambda: store.exists("k"), lambda: store.size("k"), lambda: store.open("k")):
        with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
            call()


def test_a_server_that_is_not_there_is_told_before_any_work(s3: str) -> None:
    assert "Start it or correct AWS_ENDPOINT_URL" in probe(f"{s3}/ds", "once", AWS_ENDPOINT_URL="http://127.0.0.1:9")[0]
    assert "http://host:port" in probe(f"{s3}/ds", "once", AWS_ENDPOINT_URL="127.0.0.1:9")[0]


@pytest.mark.parametrize("bucket", ["Bad_Name!", "x"])
def test_a_bucket_name_that_cannot_be_is_told_quickly(s3: str, bucket: str) -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match=bucket):
        open_store(f"s3://{bucket}/x").check()
    assert time.monotonic() - start < QUICK_S


def test_writers_and_readers_outlast_a_server_that_is_killed_and_started_again(s3: str, s3_server: S3Server) -> None:
    """Writes go on through the kill: each returns once it is done, and everything that was acknowledged is there afterwards.

    So does a read from an object that was opened before.
    """
    store = open_store(f"{s3}/kill")
    table = bytes(range(256)) * (1 << 16)  # 16 MiB: more than is read ahead
    store.put("table", table)
    opened = store.open("table")
    assert opened.read(100) == table[:100]
    written: list[str] = []
    created: list[str] = []
    stop = threading.Event()

    def write(worker: int) -> None:
        i = 0
        while not stop.is_set():
            key = f"{worker}/{i}"
            store.put(f"data/{key}", key.encode() * 5000)
            written.append(key)
            assert store.create(f"commits/{key}", key.encode())
            created.append(key)
            i += 1
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, worker) for worker in range(3)]
        try:
            wait_until(lambda: len(created) > 10, "writers")
            s3_server.kill()
            before = len(created)
            rest = pool.submit(opened.read)
            s3_server.start()
            wait_until(lambda: len(created) > before + 10, "writers after the restart")
        finally:
            stop.set()
            if s3_server.process is None:
                s3_server.start()
        for writer in writers:
            writer.result()
        assert rest.result() == table[100:]
    for key in written:
        assert store.read(f"data/{key}") == key.encode() * 5000
    for key in created:
        assert store.read(f"commits/{key}") == key.encode()
    assert not store.create(f"commits/{created[0]}", b"another"), "a commit outlasts the kill of its server"


def test_a_copy_to_a_bucket_is_equal_and_a_lease_there_holds(s3: str, tmp_path: Path) -> None:
    source, images = images_dataset(str(tmp_path / "corpus"), photographs(4), per_shard=2)
    target = Dataset(f"{s3}/copy")
    assert list(versions.copy(source, target, {"images": images}))[-1][:2] == (2, 2)
    assert target.snapshot("images") == images
    assert [target.read(ref).equals(source.read(ref)) for ref in images.shards.values()] == [True, True]
    with lease(target.store, "images"):
        with pytest.raises(InUse, match="another job is at work on 'images'"), lease(target.store, "images"):
            pass
    assert list(target.store.list("leases")) == []
