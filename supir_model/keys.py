"""Names of tensors: ours (diffusers') to those of the official checkpoint, by rule. Pure strings; inverse maps by enumeration.

Official prefixes: `model.control_model.` trunk, `model.diffusion_model.project_modules.` connectors,
`first_stage_model.denoise_encoder.` degradation-robust encoder; `model.diffusion_model.` and `first_stage_model.` the prior.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from supir_model.presets import NetworkPreset

TRUNK = "model.control_model."
CONNECTORS = "model.diffusion_model.project_modules."
ENCODER = "first_stage_model.denoise_encoder."
UNET = "model.diffusion_model."
VAE = "first_stage_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_HEAD = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "hint": "input_hint_block.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_keys(names: Iterable[str], preset: NetworkPreset) -> dict[str, str]:
    """Official names, without prefix, of the tensors of a UNet or a trunk of this network."""
    attended = frozenset(i for i, depth in enumerate(reversed(preset.transformer_depth)) if depth)
    return {name: _unet_key(name, preset.layers_per_block, attended) for name in names}


def vae_keys(names: Collection[str]) -> dict[str, str]:
    """Official names, without prefix, of all tensors of an AutoencoderKL or of its encoder alone."""
    levels = len({found[1] for name in names if (found := re.search(r"up_blocks\.(\d+)\.", name))})
    return {name: _vae_key(name, levels) for name in names}


def _unet_key(name: str, layers_per_block: int, attended_up_blocks: frozenset[int]) -> str:
    """In an up block with transformers the upsampler is the third child of its output block, elsewhere the second."""
    module, leaf = name.rsplit(".", 1)
    if module in _UNET_HEAD:
        return f"{_UNET_HEAD[module]}.{leaf}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = found.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(index)}.{_resnet(rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not found:
        raise ValueError(f"no official name for the tensor {name!r}: it belongs to no SDXL-shaped network")
    way, level, kind, rest = found[1], int(found[2]), found[3], found[5]
    layer = layers_per_block if kind.endswith("samplers") else int(found[4])  # a level ends with its sampler
    block = level * (layers_per_block + 1) + layer
    head = f"input_blocks.{block + 1}" if way == "down" else f"output_blocks.{block}"
    if kind == "resnets":
        return f"{head}.0.{_resnet(rest)}"
    if kind == "attentions":
        return f"{head}.1.{rest}"
    if kind == "downsamplers":
        return f"{head}.0.op.{leaf}"
    return f"{head}.{2 if level in attended_up_blocks else 1}.conv.{leaf}"


def _vae_key(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    return re.sub(
        r"mid_block\.attentions\.0\.(.+)\.(weight|bias)$", lambda m: f"mid.attn_1.{_VAE_ATTENTION[m[1]]}.{m[2]}", name
    )


def is_vae_attention_matrix(official: str) -> bool:
    """Whether this tensor is a 1x1 convolution in the official layout and a linear layer in ours."""
    return re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", official) is not None


def _resnet(rest: str) -> str:
    module, leaf = rest.rsplit(".", 1)
    return f"{_RESNET[module]}.{leaf}"
