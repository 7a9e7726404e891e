"""Files of named tensors, opened without being read: names, shapes and precisions at once, each tensor when it is asked for.

Nothing here executes pickled code.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' names for the files of a folder
INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
SHARD_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
MAX_SHARD_BYTES = 10 * 10**9  # diffusers' limit
REMAP_BYTES = 256 * 2**20  # choice: pages of a mapped .ckpt that may stay in memory after they were copied
METADATA = {"format": "pt"}  # other readers of safetensors ask for it
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class TensorFile(Mapping[str, Tensor], ABC):
    """Named tensors on disk. `meta` has each of them on the meta device; `file[name]` reads one, on the CPU, as stored."""

    def __init__(self, path: Path, meta: Mapping[str, Tensor]) -> None:
        self.path = path
        self.meta = dict(meta)

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)


class _Safetensors(TensorFile):
    def __init__(self, path: Path) -> None:
        try:  # with backend="mmap" the pages that were read would count as ours until the file is closed
            self._file: Any = safe_open(path, framework="pt", backend="pread")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. Copy it again") from error
        super().__init__(path, {name: _on_meta(part.get_shape(), _dtype(part.get_dtype(), path)) for name, part in slices.items()})

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _Pickled(TensorFile):
    """A torch.save file. Zip archives are mapped; the older format cannot be, and is held whole."""

    def __init__(self, path: Path) -> None:
        self._is_mapped = zipfile.is_zipfile(path)
        self._touched_bytes = 0
        self._tensors = _load(path, mmap=self._is_mapped)
        super().__init__(path, {name: _on_meta(tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        if self._is_mapped and self._touched_bytes > REMAP_BYTES:
            self._tensors = _load(self.path, mmap=True)
            self._touched_bytes = 0
        tensor = self._tensors[name]
        self._touched_bytes += tensor.nbytes
        return tensor


class _Shards(TensorFile):
    def __init__(self, index: Path) -> None:
        try:
            places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{index} is damaged: {error!r}. Copy it again") from error
        shards = {shard: open_file(index.parent / shard) for shard in sorted(set(places.values()))}
        self._shard_of = {name: shards[shard] for name, shard in places.items()}
        if absent := [name for name, shard in self._shard_of.items() if name not in shard.meta]:
            raise ValueError(f"{index} names {len(absent)} tensors that its shards do not hold ({absent[0]}, ...): copy the folder again")
        super().__init__(index.parent, {name: shard.meta[name] for name, shard in self._shard_of.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._shard_of[name][name]


def open_file(path: str | Path) -> TensorFile:
    """A .safetensors file, or one of torch.save (.ckpt, .pt, .bin) that holds tensors only, flat or under "state_dict".

    ValueError if the file is missing, damaged, or would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there, or is no file")
    return _Safetensors(path) if path.suffix == ".safetensors" else _Pickled(path)


def open_folder(folder: str | Path) -> TensorFile:
    """The weights of a folder in diffusers' layout: one .safetensors file, or an index and its shards. ValueError as above."""
    single, index = Path(folder) / WEIGHTS_FILE, Path(folder) / INDEX_FILE
    if single.exists() and index.exists():
        raise ValueError(f"{folder} holds {WEIGHTS_FILE} and {INDEX_FILE}: two sets of weights; remove the one that is not wanted")
    if not single.exists() and not index.exists():
        raise ValueError(f"{folder} is incomplete: it holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    return _Shards(index) if index.exists() else open_file(single)


def weight_files(tensors: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files that `open_folder` reads, one after the other."""
    plan = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=SHARD_PATTERN, max_shard_size=max_shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: tensors[name].detach().cpu().contiguous() for name in names}
        yield file, safetensors.torch.save(shard, metadata=METADATA)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        yield INDEX_FILE, (json.dumps(index, indent=1) + "\n").encode()


def save_file(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one .safetensors file."""
    safetensors.torch.save_file(dict(tensors), str(path), metadata=METADATA)


def _load(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors and would execute code: {error}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected tensors by name")
    state = loaded.get("state_dict", loaded)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _on_meta(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"{path} holds tensors stored as {name}, expected fp32, fp16 or bf16")
    return DTYPES[name]
