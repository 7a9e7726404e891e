"""Checkpoint files for tests: sparse ones of any size, and a prior in the original single-file layout."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from supir_model import keys
from supir_model.presets import NetworkPreset
from supir_model.text import EOT_ID

BF16_BYTES = 2


def write_sparse(path: Path, shapes: Mapping[str, Sequence[int]]) -> int:
    """A .safetensors file of bf16 zeros that takes no room on disk: a header, and a hole of the right length. Its bytes."""
    header, end_bytes = {}, 0
    for name, shape in shapes.items():
        start_bytes, end_bytes = end_bytes, end_bytes + BF16_BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start_bytes, end_bytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end_bytes)
    return end_bytes


def clip_pair(width: int, pooled: int, layers: int = 2) -> tuple[Any, Any]:
    """CLIP-L and bigG in small: their activations, and one head for each 64 channels."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shared = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
              "eos_token_id": EOT_ID, "bos_token_id": EOT_ID - 1, "pad_token_id": EOT_ID}
    first = CLIPTextModel(CLIPTextConfig(**shared, hidden_act="quick_gelu"))
    second = CLIPTextModelWithProjection(CLIPTextConfig(**shared, hidden_act="gelu", projection_dim=pooled))
    return first.eval(), second.eval()


def single_file_tensors(preset: NetworkPreset, unet: Any, vae: Any, first: Any, second: Any) -> dict[str, Tensor]:
    """A prior under the names that SDXL's single file has, the tensors included that no network of ours reads."""
    of_unet, of_vae = unet.state_dict(), vae.state_dict()
    found = {keys.UNET + theirs: of_unet[ours] for ours, theirs in keys.unet_keys(of_unet, preset).items()}
    for ours, theirs in keys.vae_keys(of_vae).items():
        tensor = of_vae[ours]
        found[keys.VAE + theirs] = tensor[:, :, None, None] if keys.is_vae_attention_matrix(theirs) else tensor
    device = next(unet.parameters()).device
    for name, tensor in first.state_dict().items():
        found[f"{keys.CLIP_L}text_model.{name.removeprefix('text_model.')}"] = tensor
    found[f"{keys.CLIP_L}text_model.embeddings.position_ids"] = torch.arange(77, device=device)[None]
    found |= _open_clip({name.removeprefix("text_model."): tensor for name, tensor in second.state_dict().items()})
    found[f"{keys.OPEN_CLIP}logit_scale"] = torch.zeros((), device=device)
    return found


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's layout, written down apart from the library's table."""
    head = keys.OPEN_CLIP
    found = {
        f"{head}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{head}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{head}ln_final.weight": state["final_layer_norm.weight"],
        f"{head}ln_final.bias": state["final_layer_norm.bias"],
        f"{head}text_projection": state["text_projection.weight"].T,
    }
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
             "mlp.c_proj": "mlp.fc2"}
    for i in range(sum(name.endswith("mlp.fc1.bias") for name in state)):
        layer, block = f"encoder.layers.{i}", f"{head}transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            found |= {f"{block}.{theirs}.{leaf}": state[f"{layer}.{ours}.{leaf}"] for theirs, ours in inner.items()}
            found[f"{block}.attn.in_proj_{leaf}"] = torch.cat([state[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"])
    return found


def save_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """A .safetensors file, floating tensors in `dtype`."""
    safetensors.torch.save_file(
        {name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous() for name, tensor in tensors.items()}, str(path)
    )
