"""Names of tensors: ours (diffusers') to those of the official checkpoint, by rule. Pure strings; inverse maps by enumeration.

Official prefixes: `model.control_model.` trunk, `model.diffusion_model.project_modules.` connectors,
`first_stage_model.denoise_encoder.` degradation-robust encoder; `model.diffusion_model.` and `first_stage_model.` the prior,
and `conditioner.embedders.*` its text encoders: CLIP-L under transformers' names, bigG under open_clip's.
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
CLIP_L = "conditioner.embedders.0.transformer."
OPEN_CLIP = "conditioner.embedders.1.model."

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
_OPEN_CLIP_HEAD = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",  # transposed
}
_OPEN_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.q_proj.": "attn.in_proj_",  # query, key and value are thirds of one tensor
    "self_attn.k_proj.": "attn.in_proj_",
    "self_attn.v_proj.": "attn.in_proj_",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def unet_keys(names: Iterable[str], preset: NetworkPreset) -> dict[str, str]:
    """Official names, without prefix, of the tensors of a UNet or a trunk of this network."""
    attended = frozenset(i for i, depth in enumerate(reversed(preset.transformer_depth)) if depth)
    return {name: _unet_key(name, preset.layers_per_block, attended) for name in names}


def vae_keys(names: Collection[str]) -> dict[str, str]:
    """Official names, without prefix, of all tensors of an AutoencoderKL or of its encoder alone."""
    levels = len({found[1] for name in names if (found := re.search(r"up_blocks\.(\d+)\.", name))})
    return {name: _vae_key(name, levels) for name in names}


def open_clip_keys(names: Iterable[str]) -> dict[str, str]:
    """open_clip's names, without prefix, of the tensors of transformers' CLIP text model with projection."""
    return {name: _open_clip_key(name.removeprefix("text_model.")) for name in names}


def _open_clip_key(name: str) -> str:
    if name in _OPEN_CLIP_HEAD:
        return _OPEN_CLIP_HEAD[name]
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+\.)(weight|bias)", name)
    if not found or found[2] not in _OPEN_CLIP_LAYER:
        raise ValueError(f"no open_clip name for the tensor {name!r}: it belongs to no CLIP text encoder")
    return f"transformer.resblocks.{found[1]}.{_OPEN_CLIP_LAYER[found[2]]}{found[3]}"


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
