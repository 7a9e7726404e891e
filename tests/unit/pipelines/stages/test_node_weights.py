"""Weights come to a node once, whoever asks, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local_store import LocalStore
from infra.storage import Entry
from infra.stores import hash_folder
from pipelines.stages import node_weights
from pipelines.stages.weights import folder_identity, is_local, local_folder, local_model
from tests.hub_server import Hub, hub_server, use_hub


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights, and a cache for this test."""
    monkeypatch.setenv("SUPIR_WEIGHTS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "weights"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_bytes(os.urandom(1000))
    (folder / ".hidden").write_text("not of the weights")
    return folder


def test_a_folder_is_brought_once_and_is_the_same(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = node_weights.from_s3(str(weights), hash_folder(str(weights)))  # the store of a folder serves as one of S3
    assert hash_folder(str(place)) == hash_folder(str(weights))
    assert not (place / ".hidden").exists()
    monkeypatch.setattr(node_weights, "_bring", lambda *_: pytest.fail("it was there"))
    assert node_weights.from_s3(str(weights), hash_folder(str(weights))) == place


def test_names_that_would_leave_the_folder_are_left_out(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile(LocalStore):  # a bucket may hold any names
        def list(self, prefix: str = "") -> Iterator[Entry]:
            found = list(super().list(prefix))
            yield from (*found, *(replace(found[0], key=key) for key in ("../out", "unet/../../out", "/tmp/supir-out", "unet//out")))

    monkeypatch.setattr(node_weights, "open_store", Hostile)
    place = node_weights.from_s3(str(weights))
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == {"config.json", "unet/model.safetensors"}


def test_other_weights_at_the_same_address_are_another_folder(weights: Path) -> None:
    first = node_weights.from_s3(str(weights))
    (weights / "config.json").write_text('{"other": 1}')
    assert node_weights.from_s3(str(weights)) != first


def test_what_does_not_have_the_hash_is_not_kept(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"had the hash 0123 when the job began, and what came to this node has [0-9a-f]{16}"):
        node_weights.from_s3(str(weights), "0123")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_what_a_killed_worker_left_is_swept(weights: Path) -> None:
    place = node_weights.from_s3(str(weights))
    place.rename(place.with_name(place.name + node_weights.PART))
    place.with_name(place.name + node_weights.PART).joinpath("stray").write_text("x")
    assert hash_folder(str(node_weights.from_s3(str(weights)))) == hash_folder(str(weights))


def test_a_node_without_room_says_so(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type(node_weights.shutil.disk_usage("/"))(total=10, used=10, free=0)
    monkeypatch.setattr(node_weights.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match="set SUPIR_WEIGHTS_CACHE to a larger disk"):
        node_weights.from_s3(str(weights))


def test_addresses() -> None:
    assert is_local("s3://models/llava")
    assert is_local("s3://models")
    assert not is_local("llava-hf/llava-1.5-13b-hf")
    with pytest.raises(ValueError, match="no folder of weights at '/nowhere'"):
        local_folder("/nowhere")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as the hub's own client lays it out, with one model, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    data = os.urandom(500)
    for name, blob, content in (("model.safetensors", hashlib.sha256(data).hexdigest(), data), ("config.json", "a" * 40, b"{}")):
        (model / "blobs" / blob).write_bytes(content)
        (model / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob}")
    return model


def test_a_hubs_model_is_read_from_its_cache_and_checked_once(hub: Path) -> None:
    place = Path(local_model("owner/name"))
    assert place.parent.parent == hub
    blob = next(path for path in (hub / "blobs").iterdir() if len(path.name) == 64)
    blob.write_bytes(b"another thing")  # after it was sealed, nobody reads 26 GB again
    assert Path(local_model("owner/name")) == place


def test_a_damaged_file_of_a_hubs_model_is_found(hub: Path) -> None:
    blob = next(path for path in (hub / "blobs").iterdir() if len(path.name) == 64)
    blob.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors was damaged: its sha256 is .*It was removed: run the same command again"):
        local_model("owner/name")
    assert not blob.exists()


def test_a_hubs_model_that_cannot_be_had_is_told(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"owner/other cannot be had from http.* \(LocalEntryNotFoundError: .*reach the hub or its cache"):
        local_model("owner/other")


DATA = os.urandom(200_000)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback address, and an empty cache."""
    hub = Hub({"config.json": b"{}", "model.safetensors": DATA, "pytorch_model.bin": b"pickled code"})
    with hub_server(hub) as url:
        use_hub(monkeypatch, url, tmp_path / "hub")
        yield hub


def test_a_hubs_model_comes_once_and_without_pickled_code(served: Hub) -> None:
    place = Path(local_model("owner/name"))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"config.json": b"{}", "model.safetensors": DATA}
    asked = len(served.asked)
    assert local_model("owner/name") == str(place)
    assert [line for line in served.asked[asked:] if "/resolve/" in line] == []
    served.gone = True
    assert local_model("owner/name") == str(place), "what is in the cache needs no hub"


def test_a_download_that_is_cut_is_told_and_taken_up_again(served: Hub) -> None:
    served.cut.add("model.safetensors")
    with pytest.raises(ValueError, match=r"owner/name cannot be had from http://127\.0\.0\.1:\d+ \(RemoteProtocolError: peer closed "
                                         r"connection .*received 100000 bytes, expected 200000"):
        local_model("owner/name")
    served.cut.clear()
    assert Path(local_model("owner/name"), "model.safetensors").read_bytes() == DATA


def test_a_download_with_another_hash_is_told_and_not_kept(served: Hub) -> None:
    served.sent["model.safetensors"] = os.urandom(len(DATA))
    with pytest.raises(ValueError, match=rf"was damaged: its sha256 is [0-9a-f]{{64}}, the hub says {hashlib.sha256(DATA).hexdigest()}"):
        local_model("owner/name")
    served.sent.clear()
    assert Path(local_model("owner/name"), "model.safetensors").read_bytes() == DATA


@pytest.mark.parametrize(("model", "gone", "message"), [
    ("owner/other", False, "owner/other cannot be had from .*RepositoryNotFoundError.* is the id right, is HF_TOKEN set"),
    ("owner/name", True, "owner/name cannot be had from .*503 Service Unavailable.* can this machine reach the hub"),
    ("owner/na..me", False, "owner/na..me cannot be had from .*HFValidationError"),
])
def test_a_hub_that_does_not_give_a_model_is_told(served: Hub, model: str, gone: bool, message: str) -> None:
    served.gone = gone
    with pytest.raises(ValueError, match=message):
        local_model(model)


def test_a_folder_on_s3_has_the_hash_of_the_folder_here(weights: Path) -> None:
    assert folder_identity(str(weights)) == hash_folder(str(weights))
