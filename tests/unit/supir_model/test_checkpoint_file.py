"""Files are opened without being read, read one tensor at a time, and written in shards."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from supir_model import checkpoint_file
from supir_model.checkpoint_file import INDEX_FILE, WEIGHTS_FILE, TensorFile, open_file, open_folder, weight_files
from supir_model.filling import fill, same_names
from tests.checkpoints import save_tensors, write_sparse

TENSORS = {f"layer.{i}.weight": torch.arange(64.0).reshape(8, 8) + i for i in range(6)}


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    """By the ending: safetensors, torch's archive, or the older format of torch, which cannot be mapped."""
    if path.suffix == ".safetensors":
        save_tensors(path, tensors)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=path.suffix == ".ckpt")
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pth"])
def test_a_file_is_a_mapping(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_file, "REMAP_BYTES", 300)  # after every second tensor
    file = open_file(write(tmp_path / name, TENSORS))
    assert set(file) == set(TENSORS)
    assert len(file) == len(TENSORS)
    assert {(tensor.shape, tensor.dtype, tensor.device.type) for tensor in file.meta.values()} == {((8, 8), torch.float32, "meta")}
    assert all(torch.equal(file[name], tensor) for name, tensor in TENSORS.items())
    with pytest.raises(KeyError, match="nowhere"):
        file.meta["nowhere"]


def test_a_file_larger_than_memory_is_opened_at_once(tmp_path: Path) -> None:
    size_bytes = write_sparse(tmp_path / "large.safetensors", {"a": (100_000, 1_000_000), "b": (3, 5)})
    file = open_file(tmp_path / "large.safetensors")
    assert size_bytes > 200e9
    assert file.meta["a"].shape == (100_000, 1_000_000)
    assert file.meta["b"].dtype == torch.bfloat16
    assert not file["b"].any()


class Counting(TensorFile):
    """Knows how many of the tensors it gave out are still held."""

    def __init__(self) -> None:
        super().__init__(Path("counting"), {name: tensor.to("meta") for name, tensor in TENSORS.items()})
        self.given: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = TENSORS[name].clone()
        self.given.append(weakref.ref(tensor))
        self.most = max(self.most, sum(ref() is not None for ref in self.given))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_network_is_filled_one_tensor_at_a_time(dtype: torch.dtype | None) -> None:
    with torch.device("meta"):
        network = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(6))})
    file = Counting()
    filled = fill(network, file, same_names(network), dtype=dtype)
    assert file.most == 1  # the one being read
    assert all(torch.equal(tensor, TENSORS[name].to(dtype or torch.float32)) for name, tensor in filled.state_dict().items())


def test_shards(tmp_path: Path) -> None:
    files = dict(weight_files(TENSORS, max_shard_bytes=600))
    assert list(files) == [f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [INDEX_FILE]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    file = open_folder(tmp_path)
    assert set(file) == set(TENSORS)
    assert all(torch.equal(file[name], tensor) for name, tensor in TENSORS.items())
    assert list(dict(weight_files(TENSORS))) == [WEIGHTS_FILE]
    (tmp_path / WEIGHTS_FILE).write_bytes(dict(weight_files(TENSORS))[WEIGHTS_FILE])
    with pytest.raises(ValueError, match="two sets of weights"):
        open_folder(tmp_path)


def test_incomplete_shards_are_refused(tmp_path: Path) -> None:
    files = dict(weight_files(TENSORS, max_shard_bytes=600))
    index = json.loads(files[INDEX_FILE])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {**index["weight_map"], "x": next(iter(files))}}))
    with pytest.raises(ValueError, match=r"names 1 tensors that its shards do not hold \(x"):
        open_folder(tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(files[INDEX_FILE])
    (tmp_path / next(iter(files))).unlink()
    with pytest.raises(ValueError, match=r"00001-of-00003.safetensors is not there"):
        open_folder(tmp_path)
    (tmp_path / INDEX_FILE).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_folder(tmp_path)
    (tmp_path / INDEX_FILE).unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pth"])
@pytest.mark.parametrize("kept", [0, 100, 1000])
def test_cut_files_are_refused(tmp_path: Path, name: str, kept: int) -> None:
    path = write(tmp_path / name, TENSORS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is damaged"):
        open_file(path)


def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds a list, expected tensors by name"):
        open_file(tmp_path / "list.ckpt")
