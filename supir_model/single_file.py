"""An SDXL base in one file of the original layout: UNet, autoencoder, CLIP-L as in transformers, bigG as in open_clip.

Bases that were trained or merged from SDXL have the same names; whatever else such a file holds is ignored, except under the
UNet's prefix, where it means another network. Widths and depths of the text encoders are read off the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supir_model import keys
from supir_model.checkpoint_file import TensorFile
from supir_model.filling import Source, check_fit, fill, seems, vae_sources
from supir_model.presets import NETWORKS, NetworkPreset
from supir_model.recognise import count
from supir_model.text import EOT_ID

HEAD_WIDTH = 64  # of both of SDXL's text encoders: 768 / 12 and 1280 / 20
OTHER_PREDICTIONS = {  # tensors that mark what a base predicts
    "v_pred": "a base that predicts v",
    "edm_mean": "a base with EDM's scaling (Playground 2.5)",
    "edm_vpred.sigma_max": "a base that predicts v with EDM's scaling",
}
CLIP_L = f"{keys.CLIP_L}text_model."


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network on the meta device, where its tensors are, and prefixes under which the file may hold nothing else."""

    what: str
    module: nn.Module
    sources: dict[str, Source]
    owned: tuple[str, ...] = ()

    def check(self, file: TensorFile) -> None:
        """ValueError unless the file holds it."""
        check_fit(self.module, file, self.sources, what=self.what, owned=self.owned)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The networks of an SDXL base."""

    unet: Part
    vae: Part
    text_encoder: Part
    text_encoder_2: Part


def plan(file: TensorFile) -> Base:
    """The networks that `file` holds, still on the meta device. ValueError if names or shapes differ, with what the file seems to be."""
    for name, what in OTHER_PREDICTIONS.items():
        if name in file.meta:
            raise ValueError(f"{file.path} is {what} (it holds {name!r}): SUPIR's sampler needs one that predicts the noise, as SDXL does")
    preset = _preset(file)
    with torch.device("meta"):
        unet, vae = preset.build_unet(), preset.build_vae()
        first, second = _clip_l(file), _open_clip(file)
    names = keys.unet_keys(unet.state_dict(), preset)
    base = Base(
        unet=Part(
            what="SDXL's UNet", module=unet, sources={ours: Source(keys.UNET + theirs) for ours, theirs in names.items()},
            owned=tuple(f"{keys.UNET}{part}" for part in ("input_blocks.", "middle_block.", "output_blocks.", "label_emb.", "out.")),
        ),
        vae=Part(what="SDXL's autoencoder", module=vae, sources=vae_sources(vae, keys.VAE)),
        text_encoder=first,
        text_encoder_2=second,
    )  # fmt: skip
    for part in (base.unet, base.vae, base.text_encoder, base.text_encoder_2):
        part.check(file)
    return base


def read(part: Part, file: TensorFile, device: str, dtype: torch.dtype) -> Any:
    """The network of a part, filled."""
    module: Any = fill(part.module, file, part.sources, device=device, dtype=dtype)
    for name, buffer in list(module.named_buffers()):
        assert name.endswith("position_ids"), f"{part.what} has a buffer {name} that is in no file"
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, torch.arange(buffer.shape[-1], device=device)[None])
    return module


def _preset(file: TensorFile) -> NetworkPreset:
    """The preset whose prior has the width of the UNet's first convolution."""
    width = _shape(file, f"{keys.UNET}input_blocks.0.0.weight")[0]
    for preset in NETWORKS.values():
        if preset.block_out_channels[0] == width:
            return preset
    known = sorted({preset.block_out_channels[0] for preset in NETWORKS.values()})
    raise ValueError(f"{file.path} holds a UNet that is {width} channels wide, expected one of {known} (SDXL: 320). {seems(file)}")


def _clip_l(file: TensorFile) -> Part:
    from transformers import CLIPTextModel

    module: Any = CLIPTextModel(_config(
        _shape(file, f"{CLIP_L}embeddings.token_embedding.weight"), _shape(file, f"{CLIP_L}embeddings.position_embedding.weight"),
        hidden=_shape(file, f"{CLIP_L}encoder.layers.0.mlp.fc1.weight")[0],
        layers=count(file, re.escape(CLIP_L) + r"encoder\.layers\.(\d+)\."), activation="quick_gelu",
    ))  # fmt: skip
    sources = {name: Source(CLIP_L + name.removeprefix("text_model.")) for name in module.state_dict()}
    return Part(what="SDXL's first text encoder (CLIP-L)", module=module, sources=sources)


def _open_clip(file: TensorFile) -> Part:
    from transformers import CLIPTextModelWithProjection

    head = keys.OPEN_CLIP
    # converters from diffusers' layout leave the projection as it is there
    is_linear = f"{head}text_projection.weight" in file.meta
    projected = _shape(file, f"{head}text_projection.weight")[0] if is_linear else _shape(file, f"{head}text_projection")[-1]
    module: Any = CLIPTextModelWithProjection(_config(
        _shape(file, f"{head}token_embedding.weight"), _shape(file, f"{head}positional_embedding"),
        hidden=_shape(file, f"{head}transformer.resblocks.0.mlp.c_fc.weight")[0],
        layers=count(file, re.escape(head) + r"transformer\.resblocks\.(\d+)\."), activation="gelu", projected=projected,
    ))  # fmt: skip
    sources = {ours: Source(head + theirs, _taken(ours)) for ours, theirs in keys.open_clip_keys(module.state_dict()).items()}
    if is_linear:
        sources["text_projection.weight"] = Source(f"{head}text_projection.weight")
    return Part(what="SDXL's second text encoder (open_clip's bigG)", module=module, sources=sources)


def _taken(ours: str) -> Callable[[Tensor], Tensor]:
    """open_clip has query, key and value in one tensor, and multiplies by its projection from the right."""
    if found := re.search(r"\.([qkv])_proj\.", ours):
        third = "qkv".index(found[1])
        return lambda tensor: tensor.tensor_split(3)[third]
    if ours == "text_projection.weight":
        return lambda tensor: tensor.transpose(0, -1)
    return lambda tensor: tensor


def _config(
    token: tuple[int, ...], position: tuple[int, ...], *, hidden: int, layers: int, activation: str, projected: int | None = None
) -> Any:
    """CLIP's text configuration. With the true end token the pooled state is that of the first one, as SDXL's argmax takes it."""
    from transformers import CLIPTextConfig

    vocabulary, width = token
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH, max_position_embeddings=position[0], hidden_act=activation,
        projection_dim=projected or width, bos_token_id=EOT_ID - 1, eos_token_id=EOT_ID, pad_token_id=EOT_ID,
    )  # fmt: skip


def _shape(file: TensorFile, name: str) -> tuple[int, ...]:
    if name not in file.meta:
        raise ValueError(f"{file.path} is no SDXL base in the original layout: it has no {name}. {seems(file)}")
    return tuple(file.meta[name].shape)
