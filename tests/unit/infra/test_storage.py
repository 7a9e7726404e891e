"""The local store: conditional creation, atomicity, listing, and errors that say what to do. The S3 store: tests/integration/test_s3.py."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from infra import storage
from infra.local_store import LocalStore
from infra.storage import NotFound, OutsideStore, StorageError, join, unique_name
from infra.stores import hash_folder, hash_weights, open_store
from tests.helpers import ROOT

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def test_what_is_put_is_read_listed_and_deleted(store: LocalStore) -> None:
    for key in ("b/2.bin", "a.bin", "b/1.bin", "bb/0.bin"):
        store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == ["a.bin", "b/1.bin", "b/2.bin", "bb/0.bin"]
    assert [(entry.key, entry.size_bytes) for entry in store.list("b")] == [("b/1.bin", 7), ("b/2.bin", 7)]
    assert store.read("b/1.bin") == b"b/1.bin"
    assert store.size("a.bin") == 5
    with store.open("a.bin") as file:
        file.seek(2)
        assert file.read() == b"bin"
    store.delete("b/1.bin")
    store.delete("b/1.bin")
    assert not store.exists("b/1.bin")
    assert store.exists("b/2.bin")
    assert not store.exists("b"), "a folder is not an object"
    assert list(store.list("missing")) == []


def test_a_missing_key_is_named(store: LocalStore) -> None:
    for access in (store.read, store.open, store.size):
        with pytest.raises(NotFound, match="store/a/b does not exist"):
            access("a/b")


def test_data_is_never_overwritten(store: LocalStore) -> None:
    store.put("a", b"first")
    with pytest.raises(StorageError, match="exists already"):
        store.put("a", b"second")
    assert store.read("a") == b"first", "and the refused writer has not removed it either"


def test_what_is_written_piece_by_piece_is_whole_or_absent(store: LocalStore) -> None:
    def breaks(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("the encoder broke")

    assert store.write("a", lambda file: file.write(b"whole")) == 5
    with pytest.raises(RuntimeError):
        store.write("b", breaks)
    assert [entry.key for entry in store.list()] == ["a"]


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_key_may_not_lead_out(store: LocalStore, key: str) -> None:
    with pytest.raises(OutsideStore, match="leads out of"):
        store.read(key)


def test_a_link_out_of_the_store_is_listed_but_not_followed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store.put("a", b"")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "nowhere").symlink_to(tmp_path / "gone")
    assert [entry.key for entry in store.list()] == ["a", "link"]
    with pytest.raises(OutsideStore):
        store.read("link")


def test_create_is_conditional_and_leaves_nothing_behind(store: LocalStore) -> None:
    assert store.create("c/x.json", b"one")
    assert not store.create("c/x.json", b"two")
    assert store.create("c/x.json", b"one"), "our own data: the first try arrived and only its answer was lost"
    assert store.read("c/x.json") == b"one"
    assert [entry.key for entry in store.list()] == ["c/x.json"]


def test_of_many_threads_one_creates(store: LocalStore) -> None:
    for race in range(20):
        start = threading.Barrier(16)

        def attempt(i: int, race: int = race, start: threading.Barrier = start) -> bool:
            start.wait()
            return store.create(f"race/{race}", b"%d" % i)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(attempt, range(16)))
        assert sum(won) == 1
        assert store.read(f"race/{race}") == b"%d" % won.index(True)


WRITER = """
import itertools, sys
from infra.local_store import LocalStore
store = LocalStore(sys.argv[1])
print("ready", flush=True)
for i in itertools.count():
    store.{method}(f"{{sys.argv[2]}}/{{i}}", b"%08d" % i * 40000)
"""


@pytest.mark.parametrize("rounds", [8])
def test_a_created_object_is_whole_or_absent_when_its_writer_is_killed(store: LocalStore, rounds: int) -> None:
    for round_ in range(rounds):
        command = [sys.executable, "-c", WRITER.format(method="create"), store.url, str(round_)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.01 + 0.007 * round_)
            writer.send_signal(signal.SIGKILL)
    entries = list(store.list())
    objects = [entry for entry in entries if not entry.key.endswith(storage.TEMPORARY)]
    assert len(objects) >= rounds
    for entry in objects:
        number = int(entry.key.rsplit("/", 1)[1])
        assert store.read(entry.key) == b"%08d" % number * 40000, "half a file was taken for a whole one"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not AS_ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs needs the right to mount: run as root with CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_same_put_works_once_there_is_space(small_disk: Path) -> None:
    store = LocalStore(str(small_disk / "ds"))
    store.put("ballast", bytes(150_000))
    for write in (store.put, store.create):
        with pytest.raises(StorageError, match=r"no space left .* free some space and run the same command again"):
            write("more", bytes(200_000))
        assert [entry.key for entry in store.list()] == ["ballast"], "nothing half-written stays"
    store.delete("ballast")
    store.put("more", bytes(200_000))


def test_check_says_what_is_wrong_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    LocalStore(str(tmp_path / "not" / "yet" / "there")).check(write=True)
    for url in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="file is a file, expected a folder"):
            LocalStore(str(url)).check()
        with pytest.raises(StorageError):
            LocalStore(str(url)).put("key", b"")


ORDINARY = """
import os, sys
from infra.local_store import LocalStore
from infra.storage import StorageError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = LocalStore(sys.argv[1])
for call in (lambda: store.check(), lambda: store.check(write=True), lambda: list(store.list()), lambda: store.read("in/key"),
             lambda: store.put("in/new", b""), lambda: store.create("in/new", b""), lambda: store.exists("in/key"),
             lambda: store.delete("in/key")):
    try:
        call()
        print("ok")
    except StorageError as error:
        print(error)
"""


@pytest.mark.skipif(not AS_ROOT, reason="becomes another user, which only root may")
def test_an_ordinary_user_without_permission_gets_a_sentence_each_time() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        LocalStore(folder).put("in/key", b"secret")
        os.chmod(Path(folder, "in"), 0o700)
        done = subprocess.run([sys.executable, "-c", ORDINARY, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    readable, writable, *others = done.stdout.splitlines()
    assert readable == "ok"
    assert "may not be written by this user" in writable
    assert len(others) == 6
    assert all("this user may not access" in line for line in others), others


def test_addresses() -> None:
    assert open_store("some/folder").url == str(Path("some/folder").resolve())
    assert open_store("file:///some/folder").url == "/some/folder"
    assert open_store("s3://bucket/prefix/").child("a", "b").url == "s3://bucket/prefix/a/b"
    assert join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    for wrong, hint in (("gs://bucket/x", "scheme that is not supported"), ("", "empty"), ("s3://", "names no bucket")):
        with pytest.raises(StorageError, match=hint):
            open_store(wrong)


def test_a_store_travels_to_workers(store: LocalStore) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"
    assert pickle.loads(pickle.dumps(open_store("s3://bucket/x"))).url == "s3://bucket/x"


def test_unique_names_differ() -> None:
    assert len({unique_name("a/b", ".x") for _ in range(1000)}) == 1000


def test_a_folder_of_weights_is_known_by_its_names_and_bytes(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("config.json", b"{}")
    store.put(".cache/x", b"not weights")
    first = hash_folder(str(tmp_path))
    store.put("model.safetensors", b"1")
    second = hash_folder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert len({first, second, hash_folder(str(tmp_path))}) == 3
    with pytest.raises(NotFound, match="holds no file"):
        hash_folder(str(tmp_path / "empty"))


def test_weights_are_a_folder_or_one_file(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("folder/model.safetensors", b"weights")
    store.put("other.ckpt", b"weights")
    assert hash_weights(str(tmp_path / "folder")) == hash_weights(f"{tmp_path}/folder/") == hash_folder(str(tmp_path / "folder"))
    file = hash_weights(str(tmp_path / "folder" / "model.safetensors"))
    assert file == hash_weights(str(tmp_path / "other.ckpt")) == hashlib.sha256(b"weights").hexdigest()[:16]
    with pytest.raises(NotFound, match="holds no file"):
        hash_weights(str(tmp_path / "nothing.ckpt"))


def test_weights_may_be_links_into_a_hubs_cache(tmp_path: Path) -> None:
    for folder in ("copies", "links"):
        (tmp_path / folder).mkdir()
    (tmp_path / "copies" / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "links" / "w.safetensors").symlink_to(tmp_path / "copies" / "w.safetensors")
    assert hash_folder(str(tmp_path / "links")) == hash_folder(str(tmp_path / "copies"))
    assert hash_weights(f"{tmp_path}/links/w.safetensors") == hash_weights(f"{tmp_path}/copies/w.safetensors")
