"""The official checkpoint layout: one flat file with the official names (`supir_model.keys`) for trunk, connectors and encoder.

SDXL's own tensors are never in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from supir_model import keys
from supir_model.checkpoint_file import TensorFile, open_file, save_file
from supir_model.filling import Source, misfits, seems
from supir_model.network import SupirAdaptor
from supir_model.presets import NETWORKS, NetworkPreset, get_network

ADAPTOR = (keys.TRUNK, keys.CONNECTORS)
UNUSED = ("model.control_model.mask_LQ",)  # in the released file, used by nothing


def official_tensors(
    *,
    adaptor: SupirAdaptor | None = None,
    encoder: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """What was trained, flat, under the official names."""
    found: dict[str, Tensor] = {}
    if adaptor is not None:
        state = adaptor.state_dict()
        found |= {source.name: state[ours] for ours, source in adaptor_sources(adaptor).items()}
    if encoder is not None:
        state = encoder.state_dict()
        for ours, theirs in keys.vae_keys(state).items():
            tensor = state[ours]
            found[keys.ENCODER + theirs] = tensor[:, :, None, None] if keys.is_vae_attention_matrix(theirs) else tensor
    return {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in found.items()}


def save_official(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `official_tensors` to a .safetensors file, which the released code reads as it reads a .ckpt."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: the official layout is written as .safetensors only; choose that ending")
    save_file(path, tensors)


def read_official(path: str | Path) -> TensorFile:
    """A file in the official layout, .safetensors or .ckpt (tensors only), opened: its tensors are read when they are asked for.

    ValueError if the file is missing, damaged, or would execute code.
    """
    file = open_file(path)
    for name in UNUSED:
        if file.meta.pop(name, None) is not None:
            warnings.warn(f"{name} is ignored: the released network does not use it", stacklevel=1)  # from one line: said once
    return file


def identify(file: TensorFile) -> NetworkPreset:
    """The network preset whose adaptor an official file holds; ValueError that says how it differs from the nearest one."""
    check_any(file, ADAPTOR, "adaptor")
    own = {name: tensor.shape for name, tensor in file.meta.items() if name.startswith(ADAPTOR)}
    differences: dict[str, int] = {}
    for preset in NETWORKS.values():
        adaptor = empty_adaptor(preset)
        state = adaptor.state_dict()
        expected = {source.name: state[ours].shape for ours, source in adaptor_sources(adaptor).items()}
        if own == expected:
            return preset
        differences[preset.name] = len({name for name, _ in own.items() ^ expected.items()})
    nearest = empty_adaptor(get_network(min(differences, key=differences.__getitem__)))
    faults = misfits(nearest.state_dict(), file, adaptor_sources(nearest), ADAPTOR)
    raise ValueError(
        f"{file.path} holds an adaptor of no known network ({', '.join(NETWORKS)}). From the nearest one, {nearest.preset.name!r}, "
        f"it differs by: {'; '.join(faults)}. Copy the file again if it should be that one"
    )


def empty_adaptor(preset: NetworkPreset) -> SupirAdaptor:
    """An adaptor on the meta device."""
    with torch.device("meta"):
        return SupirAdaptor(preset)


def adaptor_sources(adaptor: SupirAdaptor) -> dict[str, Source]:
    """Where an official file has the tensors of an adaptor."""
    trunk = keys.unet_keys(adaptor.trunk.state_dict(), adaptor.preset)
    return {f"trunk.{ours}": Source(keys.TRUNK + theirs) for ours, theirs in trunk.items()} | {
        f"connectors.{name}": Source(keys.CONNECTORS + name) for name in adaptor.connectors.state_dict()
    }


def check_any(file: TensorFile, prefixes: tuple[str, ...], what: str) -> None:
    """ValueError that says what the file seems to be unless a name starts with one of `prefixes`."""
    if not any(name.startswith(prefixes) for name in file.meta):
        raise ValueError(f"{file.path} holds no tensor that starts with {' or '.join(prefixes)}: it has no {what}. {seems(file)}")
