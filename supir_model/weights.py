"""Files of what is trained here: our folders, and the official checkpoint layout in and out.

A folder of ours holds `config.json` ({"trained": "encoder" | "adaptor", "network": preset}) and one safetensors file whose
tensors bear diffusers' names. The official layout is one flat file with the official names (`supir_model.keys`) for trunk,
connectors and encoder together; SDXL's own tensors are never in it. Nothing here executes pickled code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from supir_model import keys
from supir_model.encoder import DegradationRobustEncoder
from supir_model.network import SupirAdaptor, check_same_network
from supir_model.presets import NETWORKS, NetworkPreset, UNet, Vae, get_network
from supir_model.prior import Components, load_components

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' name for the file of a folder
UNUSED = ("model.control_model.mask_LQ",)  # in the official file, used by nothing

Trained = Literal["encoder", "adaptor"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
Tensors = dict[str, Tensor]


def encoder_files(encoder: nn.Module, network: str) -> dict[str, bytes]:
    """The files of an encoder folder by name."""
    return _files(encoder, "encoder", network)


def adaptor_files(adaptor: SupirAdaptor) -> dict[str, bytes]:
    """The files of an adaptor folder by name."""
    return _files(adaptor, "adaptor", adaptor.preset.name)


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write the files of `encoder_files` or `adaptor_files`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (Path(folder) / name).write_bytes(data)


def load_encoder(path: str | Path, vae: Vae) -> DegradationRobustEncoder:
    """The degradation-robust encoder of a folder of ours or of an official file, precision as stored; ValueError if it does
    not fit `vae`."""
    with torch.device("meta"):
        encoder: DegradationRobustEncoder = type(vae).from_config(vae.config).encoder
    return _fill(encoder, _tensors_of_encoder(Path(path), vae), f"{path} holds the encoder of another autoencoder than the prior's")


def load_adaptor(path: str | Path, unet: UNet) -> SupirAdaptor:
    """The adaptor of a folder of ours or of an official file, precision as stored; ValueError if it does not fit `unet`."""
    source = Path(path)
    ours = source.is_dir()
    config = _config(source, "adaptor") if ours else {}  # first: it knows swapped and incomplete folders
    tensors = _read_safetensors(source / WEIGHTS_FILE) if ours else read_official(source)
    preset = get_network(config["network"]) if ours else identify(tensors, source)
    try:
        check_same_network(unet, preset)
    except ValueError as difference:
        raise ValueError(f"{path} holds an adaptor of network {preset.name!r}, but {difference}") from difference
    with torch.device("meta"):
        adaptor = SupirAdaptor(preset)
    if not ours:
        tensors = {name: tensors[theirs] for name, theirs in _adaptor_names(adaptor).items()}
    return _fill(adaptor, tensors, f"{path} holds no adaptor of network {preset.name!r}")


@dataclass(frozen=True, kw_only=True)
class Restorer:
    """Everything that restores an image. `adaptor` None leaves the prior alone, and then nothing but the pull keeps to the input."""

    components: Components
    encoder: DegradationRobustEncoder
    adaptor: SupirAdaptor | None

    @property
    def device(self) -> torch.device:
        return torch.device(self.components.unet.device)

    @property
    def vae_factor(self) -> int:
        """Pixels of the image in one of the latent, per axis."""
        return int(2 ** (len(self.components.vae.config.block_out_channels) - 1))


def load_restorer(
    prior_folder: str | Path,
    *,
    encoder: str | Path | None = None,
    adaptor: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Restorer:
    """Prior, degradation-robust encoder (None: the prior's own) and adaptor (None: none), frozen, on `device` in `dtype`.

    The autoencoder stays in fp32 where `dtype` is fp16, in which SDXL's overflows. ValueError that teaches if files are missing
    or belong to another network.
    """
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    components = load_components(prior_folder, device, dtype, vae_dtype)
    loaded = load_encoder(encoder, components.vae) if encoder else components.vae.encoder
    control = load_adaptor(adaptor, components.unet) if adaptor else None
    return Restorer(
        components=components,
        encoder=loaded.to(device, vae_dtype).eval().requires_grad_(False),
        adaptor=control and control.to(device, dtype).eval().requires_grad_(False),
    )


def official_tensors(
    *,
    adaptor: SupirAdaptor | None = None,
    encoder: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Tensors:
    """What was trained, flat, under the official names."""
    found: Tensors = {}
    if adaptor is not None:
        state, names = adaptor.state_dict(), _adaptor_names(adaptor)
        found |= {names[name]: tensor for name, tensor in state.items()}
    if encoder is not None:
        state = encoder.state_dict()
        for ours, theirs in keys.vae_keys(state).items():
            tensor = state[ours]
            found[keys.ENCODER + theirs] = tensor[:, :, None, None] if keys.is_vae_attention_matrix(theirs) else tensor
    return {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in found.items()}


def save_official(path: str | Path, tensors: Tensors) -> None:
    """Write `official_tensors` to a .safetensors file, which the released code reads as it reads a .ckpt."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: the official layout is written as .safetensors only; choose that ending")
    safetensors.torch.save_file(tensors, str(path))


def read_official(path: str | Path) -> Tensors:
    """The tensors of a file in the official layout, .safetensors or .ckpt; a .ckpt may hold tensors only.

    ValueError if the file is missing, damaged, or would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there: expected a folder of ours or a file in the official layout")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is damaged, or holds more than tensors and would execute code: {error}") from error
        tensors = loaded.get("state_dict", loaded)
    return {name: tensor for name, tensor in tensors.items() if name not in UNUSED}


def identify(official: Tensors, path: str | Path) -> NetworkPreset:
    """The network preset whose adaptor has the official tensors' names and shapes; ValueError that names what is near."""
    found = {name: tuple(tensor.shape) for name, tensor in official.items() if name.startswith((keys.TRUNK, keys.CONNECTORS))}
    if not found:
        raise ValueError(f"{path} holds no tensor that starts with {keys.TRUNK} or {keys.CONNECTORS}: it has no adaptor")
    differences = {}
    for preset in NETWORKS.values():
        with torch.device("meta"):
            adaptor = SupirAdaptor(preset)
        state = adaptor.state_dict()
        expected = {theirs: tuple(state[ours].shape) for ours, theirs in _adaptor_names(adaptor).items()}
        if found == expected:
            return preset
        differences[preset.name] = len(dict(found.items() ^ expected.items()))
    counts = ", ".join(f"{name}: {count}" for name, count in differences.items())
    raise ValueError(f"{path} holds an adaptor of no known network (tensors that differ: {counts})")


def _files(module: nn.Module, trained: Trained, network: str) -> dict[str, bytes]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    config = json.dumps({"trained": trained, "network": network}, indent=1) + "\n"
    return {CONFIG_FILE: config.encode(), WEIGHTS_FILE: safetensors.torch.save(tensors)}


def _config(folder: Path, trained: Trained) -> dict[str, str]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}: expected a folder that training wrote for its {trained}")
    config: dict[str, str] = json.loads(path.read_text())
    if config.get("trained") != trained:
        raise ValueError(f"{folder} holds {config.get('trained')!r}, expected {trained!r}: are two folders swapped?")
    return config


def _tensors_of_encoder(source: Path, vae: Vae) -> Tensors:
    if source.is_dir():
        _config(source, "encoder")
        return _read_safetensors(source / WEIGHTS_FILE)
    official = read_official(source)
    found = {}
    for ours, theirs in keys.vae_keys(vae.encoder.state_dict()).items():
        tensor = official.get(keys.ENCODER + theirs)
        if tensor is not None:
            found[ours] = tensor[:, :, 0, 0] if keys.is_vae_attention_matrix(theirs) else tensor
    return found


def _adaptor_names(adaptor: SupirAdaptor) -> dict[str, str]:
    """Ours -> official, with prefixes."""
    trunk = keys.unet_keys(adaptor.trunk.state_dict(), adaptor.preset)
    return {f"trunk.{ours}": keys.TRUNK + theirs for ours, theirs in trunk.items()} | {
        f"connectors.{name}": keys.CONNECTORS + name for name in adaptor.connectors.state_dict()
    }


def _read_safetensors(path: Path) -> Tensors:
    if not path.is_file():
        raise ValueError(f"{path} is not there: the folder is incomplete")
    try:
        return dict(safetensors.torch.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy it again") from error


def _fill(module: ModuleT, tensors: Tensors, whose: str) -> ModuleT:
    """`module`, made on the meta device, with `tensors` for its weights; ValueError that names the first misfit."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{whose}: its {name} has shape {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}. "
                "Choose the weights that were trained on this prior"
            )
    module.load_state_dict(tensors, assign=True)
    return module
