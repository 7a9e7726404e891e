"""The adaptor's trunk: a trainable copy of the encoder half of the prior (Sec. 3.1; Fig. 3).

Attributes and tensors bear the names of diffusers' UNet2DConditionModel, so that weights go across by name, and one pair of
functions (`embed`, `run_encoder`) runs the encoder half of either network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, DownBlock2D, UNetMidBlock2DCrossAttn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from supir_model.connectors import zeroed
from supir_model.presets import NetworkPreset, UNet

AddedConditions = Mapping[str, Tensor]  # "text_embeds" [B, pooled_dim] and "time_ids" [B, 6] (pixels), as diffusers names them


class Trunk(nn.Module):
    """Features of the noisy latent and of the LQ latent: one a skip of the prior, finest first, then the middle block's.

    The trunk sees the noisy latent exactly as the prior does; the LQ latent passes one zero-initialised convolution and is
    added after `conv_in` (docs/numerics.md, lines 1 and 4).
    """

    def __init__(self, preset: NetworkPreset) -> None:
        super().__init__()
        widths = preset.block_out_channels
        embed_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(preset.latent_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], embed_dim)
        self.add_time_proj = Timesteps(preset.addition_time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.add_embedding = TimestepEmbedding(preset.vector_dim, embed_dim)
        self.down_blocks = nn.ModuleList(_down_block(preset, level) for level in range(len(widths)))
        self.mid_block = UNetMidBlock2DCrossAttn(
            widths[-1], embed_dim, resnet_eps=1e-5, **_transformer(preset, len(widths) - 1)
        )
        self.hint = zeroed(nn.Conv2d(preset.latent_channels, widths[0], 3, padding=1))

    def forward(
        self, x_BCHW: Tensor, timestep_B: Tensor, context_BND: Tensor, added: AddedConditions, z_lq_BCHW: Tensor
    ) -> list[Tensor]:
        """Control features of `x_BCHW`, the noisy latent already scaled by c_in."""
        embedding_BD = embed(self, x_BCHW, timestep_B, added)
        x, skips = run_encoder(self, self.conv_in(x_BCHW) + self.hint(z_lq_BCHW), embedding_BD, context_BND)
        return [*skips, x]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the residual blocks in the backward pass instead of keeping what is inside them."""
        for block in (*self.down_blocks, self.mid_block):
            block.gradient_checkpointing = enabled
            block._gradient_checkpointing_func = recompute  # the name that diffusers' blocks call

    @torch.no_grad()
    def copy_encoder_half(self, unet: UNet) -> None:
        """Start from the prior's weights; the hint stays as it is."""
        weights = unet.state_dict()
        for name, tensor in self.state_dict().items():
            if not name.startswith("hint."):
                tensor.copy_(weights[source_name(name, self, unet)])


def source_name(name: str, trunk: nn.Module, unet: nn.Module) -> str:
    """The prior's tensor that the trunk's tensor `name` starts from.

    Of n transformer blocks a trunk that keeps k takes the blocks floor(i n / k): evenly spaced, the first included.
    # choice: the paper does not say which half is trimmed; spacing is what layer-dropping distillation found to keep most
    """
    head, found, tail = name.partition(".transformer_blocks.")
    if not found:
        return name
    index, _, leaf = tail.partition(".")
    kept, full = (len(_blocks(net, head + found[:-1])) for net in (trunk, unet))
    return f"{head}{found}{int(index) * full // kept}.{leaf}"


def embed(net: Any, x_BCHW: Tensor, timestep_B: Tensor, added: AddedConditions) -> Tensor:
    """Time and vector embedding [B, 4M] of a trunk or a UNet2DConditionModel: what every residual block is told."""
    dtype = x_BCHW.dtype
    time_BD = net.time_embedding(net.time_proj(timestep_B.expand(len(x_BCHW))).to(dtype))
    sizes_BD = net.add_time_proj(added["time_ids"].flatten()).reshape(len(x_BCHW), -1)
    vector_BD = torch.cat([added["text_embeds"], sizes_BD.to(added["text_embeds"].dtype)], dim=-1)
    embedding_BD: Tensor = time_BD + net.add_embedding(vector_BD.to(dtype))
    return embedding_BD


def run_encoder(net: Any, x_BCHW: Tensor, embedding_BD: Tensor, context_BND: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Down blocks and middle block of a trunk or a UNet2DConditionModel, from the output of `conv_in`: (features, skips)."""
    x, skips = x_BCHW, [x_BCHW]
    for block in net.down_blocks:
        attended = {"encoder_hidden_states": context_BND} if hasattr(block, "attentions") else {}
        x, outputs = block(x, embedding_BD, **attended)
        skips += outputs
    return net.mid_block(x, embedding_BD, encoder_hidden_states=context_BND), skips


def recompute(function: Any, *inputs: Any) -> Any:
    """`function(*inputs)`, whose inner activations are computed again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False)


def _down_block(preset: NetworkPreset, level: int) -> nn.Module:
    widths = preset.block_out_channels
    common: dict[str, Any] = {
        "in_channels": widths[max(level - 1, 0)],
        "out_channels": widths[level],
        "temb_channels": 4 * widths[0],
        "num_layers": preset.layers_per_block,
        "resnet_eps": 1e-5,  # SDXL
        "add_downsample": level < len(widths) - 1,
    }
    if not preset.trunk_depth[level]:
        return DownBlock2D(**common)
    return CrossAttnDownBlock2D(**common, **_transformer(preset, level))


def _transformer(preset: NetworkPreset, level: int) -> dict[str, Any]:
    return {
        "transformer_layers_per_block": preset.trunk_depth[level],
        "num_attention_heads": preset.block_out_channels[level] // preset.head_width,
        "cross_attention_dim": preset.context_dim,
        "use_linear_projection": True,
    }


def _blocks(net: nn.Module, name: str) -> nn.ModuleList:
    blocks = net.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList), f"{name} is no list of transformer blocks"
    return blocks
