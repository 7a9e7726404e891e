"""Files of what is trained here: our folders, and files in the official layout.

A folder of ours holds `config.json` ({"trained": "encoder" | "adaptor", "network": preset}) and safetensors whose tensors bear
diffusers' names, in one file or in shards with an index; `supir_model.official` has the official layout. Both are read one
tensor at a time into a network that is made empty, so that little more than the network is ever in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from supir_model import keys
from supir_model.checkpoint_file import MAX_SHARD_BYTES, SHARD_PATTERN, WEIGHTS_FILE, open_folder, weight_files
from supir_model.encoder import DegradationRobustEncoder
from supir_model.filling import check_fit, fill, same_names, vae_sources
from supir_model.network import SupirAdaptor, check_same_network
from supir_model.official import (
    ADAPTOR,
    adaptor_sources,
    check_any,
    empty_adaptor,
    identify,
    official_tensors,
    read_official,
    save_official,
)
from supir_model.offload import execution_device
from supir_model.presets import UNet, Vae, get_network
from supir_model.prior import Components, load_components

__all__ = [
    "CONFIG_FILE", "WEIGHTS_FILE", "Restorer", "adaptor_files", "encoder_files", "identify", "load_adaptor", "load_encoder",
    "load_restorer", "official_tensors", "read_official", "save_adaptor", "save_encoder", "save_official", "write_folder",
]  # fmt: skip

CONFIG_FILE = "config.json"
HINT = "Choose the weights that were trained on this prior."

Trained = Literal["encoder", "adaptor"]


def encoder_files(encoder: nn.Module, network: str) -> dict[str, bytes]:
    """The files of an encoder folder by name."""
    return dict(_files(encoder, "encoder", network, MAX_SHARD_BYTES))


def adaptor_files(adaptor: SupirAdaptor) -> dict[str, bytes]:
    """The files of an adaptor folder by name."""
    return dict(_files(adaptor, "adaptor", adaptor.preset.name, MAX_SHARD_BYTES))


def save_encoder(folder: str | Path, encoder: nn.Module, network: str, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write an encoder folder, file by file."""
    _write(folder, _files(encoder, "encoder", network, max_shard_bytes))


def save_adaptor(folder: str | Path, adaptor: SupirAdaptor, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write an adaptor folder, file by file."""
    _write(folder, _files(adaptor, "adaptor", adaptor.preset.name, max_shard_bytes))


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write the files of `encoder_files` or `adaptor_files`. Other weights of the folder are removed."""
    _write(folder, files.items())


def load_encoder(
    path: str | Path, vae: Vae, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> DegradationRobustEncoder:
    """The degradation-robust encoder of a folder of ours or of an official file.

    `dtype` None keeps the precision as stored. ValueError if it does not fit `vae`.
    """
    with torch.device("meta"):
        encoder: DegradationRobustEncoder = type(vae).from_config(vae.config).encoder
    source = Path(path)
    if source.is_dir():
        _config(source, "encoder")  # first: it knows swapped and incomplete folders
        file, sources, owned = open_folder(source), same_names(encoder), ""
    else:
        file, sources, owned = read_official(source), vae_sources(encoder, keys.ENCODER), keys.ENCODER
        check_any(file, (keys.ENCODER,), "encoder")
    check_fit(encoder, file, sources, what="an encoder of the prior's autoencoder", owned=(owned,), hint=HINT)
    return fill(encoder, file, sources, device=device, dtype=dtype)


def load_adaptor(path: str | Path, unet: UNet, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SupirAdaptor:
    """The adaptor of a folder of ours or of an official file.

    `dtype` None keeps the precision as stored. ValueError if it does not fit `unet`.
    """
    source = Path(path)
    if source.is_dir():
        adaptor = empty_adaptor(get_network(_config(source, "adaptor")["network"]))
        file, sources = open_folder(source), same_names(adaptor)
    else:
        file = read_official(source)
        adaptor = empty_adaptor(identify(file))
        sources = adaptor_sources(adaptor)
    name = adaptor.preset.name
    try:
        check_same_network(unet, adaptor.preset)
    except ValueError as difference:
        raise ValueError(f"{path} holds an adaptor of network {name!r}, but {difference}") from difference
    owned = ("",) if source.is_dir() else ADAPTOR
    check_fit(adaptor, file, sources, what=f"an adaptor of network {name!r}", owned=owned, hint=HINT)
    return fill(adaptor, file, sources, device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Restorer:
    """Everything that restores an image. `adaptor` None leaves the prior alone, and then nothing but the pull keeps to the input."""

    components: Components
    encoder: DegradationRobustEncoder
    adaptor: SupirAdaptor | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return execution_device(self.components.unet)

    @property
    def vae_factor(self) -> int:
        """Pixels of the image in one of the latent, per axis."""
        return int(2 ** (len(self.components.vae.config.block_out_channels) - 1))


def load_restorer(
    prior: str | Path,
    *,
    encoder: str | Path | None = None,
    adaptor: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Restorer:
    """Prior, degradation-robust encoder (None: the prior's own) and adaptor (None: none), frozen, on `device` in `dtype`.

    `prior` is a folder or one file of an SDXL base (`load_components`). The autoencoder stays in fp32 where `dtype` is fp16, in
    which SDXL's overflows. ValueError that teaches if files are missing or belong to another network.
    """
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    components = load_components(prior, device, dtype, vae_dtype)
    loaded = load_encoder(encoder, components.vae, device=device, dtype=vae_dtype) if encoder else components.vae.encoder
    control = load_adaptor(adaptor, components.unet, device=device, dtype=dtype) if adaptor else None
    return Restorer(
        components=components,
        encoder=loaded.eval().requires_grad_(False),
        adaptor=control and control.eval().requires_grad_(False),
    )


def _files(module: nn.Module, trained: Trained, network: str, max_shard_bytes: int) -> Iterable[tuple[str, bytes]]:
    yield CONFIG_FILE, (json.dumps({"trained": trained, "network": network}, indent=1) + "\n").encode()
    yield from weight_files(module.state_dict(), max_shard_bytes)


def _write(folder: str | Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Shards of weights that lay here before would be read in place of the new ones, or beside them."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(SHARD_PATTERN.format(suffix="*") + "*"):
        old.unlink()
    for name, data in files:
        (root / name).write_bytes(data)


def _config(folder: Path, trained: Trained) -> dict[str, str]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}: expected a folder that training wrote for its {trained}")
    config: dict[str, str] = json.loads(path.read_text())
    if config.get("trained") != trained:
        raise ValueError(f"{folder} holds {config.get('trained')!r}, expected {trained!r}: are two folders swapped?")
    return config
