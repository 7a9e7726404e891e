"""Connectors between the adaptor's trunk and the prior's decoder (Sec. 3.1; Fig. 3, right), and where each one sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from supir_model.presets import NetworkPreset

HIDDEN = 128  # released code: width between the control feature and its scale and shift
GROUPS = 32  # released code
EPS = 1e-5  # released code
HEAD_WIDTH = 64  # released code: heads of ZeroCrossAttn


class ZeroSFT(nn.Module):
    """Scale and shift of the prior's features by the trunk's (Fig. 3, "ZeroSFT").

        u   = [h, s + Z(c)]
        out = w (GN(u) (1 + g(c)) + b(c)) + (1 - w) [h, s]

    c control feature, s skip (or the middle feature, and then no h), h decoder feature, w control scale; Z, g and b start at
    zero. At the start with w = 1 this is GN([h, s]), not the identity (docs/numerics.md, line 3). The tensors bear the names
    of the official checkpoint; its `param_free_norm` has parameters.
    """

    def __init__(self, control_channels: int, skip_channels: int, decoder_channels: int) -> None:
        super().__init__()
        channels = skip_channels + decoder_channels
        self.param_free_norm = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.mlp_shared = nn.Sequential(nn.Conv2d(control_channels, HIDDEN, 3, padding=1), nn.SiLU())
        self.zero_mul = zeroed(nn.Conv2d(HIDDEN, channels, 3, padding=1))
        self.zero_add = zeroed(nn.Conv2d(HIDDEN, channels, 3, padding=1))
        self.zero_conv = zeroed(nn.Conv2d(control_channels, skip_channels, 1))

    def forward(self, control_BCHW: Tensor, skip_BCHW: Tensor, decoder_BCHW: Tensor | None, scale: float) -> Tensor:
        """[B, decoder + skip channels, H, W]: what the next block of the decoder reads. `scale` 0 gives [h, s] untouched."""
        raw = _beside(decoder_BCHW, skip_BCHW)
        if scale == 0:
            return raw
        u = self.param_free_norm(_beside(decoder_BCHW, skip_BCHW + self.zero_conv(control_BCHW)))
        a = self.mlp_shared(control_BCHW)
        out: Tensor = u * (1 + self.zero_mul(a)) + self.zero_add(a)
        return out if scale == 1 else scale * out + (1 - scale) * raw


class ZeroConv(nn.Module):
    """The connector of ControlNet, which Table 2c compares with: out = [h, s + w Z(c)], Z a 1x1 convolution that starts at zero.

    At the start the network is the plain prior. It has no cross-attention beside it (`places`).
    """

    def __init__(self, control_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.zero_conv = zeroed(nn.Conv2d(control_channels, skip_channels, 1))

    def forward(self, control_BCHW: Tensor, skip_BCHW: Tensor, decoder_BCHW: Tensor | None, scale: float) -> Tensor:
        """As `ZeroSFT.forward`."""
        if scale == 0:
            return _beside(decoder_BCHW, skip_BCHW)
        return _beside(decoder_BCHW, skip_BCHW + scale * self.zero_conv(control_BCHW))


class ZeroCrossAttn(nn.Module):
    """Attention of the decoder's features to the trunk's, in front of an upsampler; not in the paper (docs/numerics.md, line 2).

        out = h + w Attention(query GN(h), context GN(c))
    """

    def __init__(self, query_channels: int, context_channels: int) -> None:
        super().__init__()
        if query_channels % HEAD_WIDTH:
            raise ValueError(
                f"ZeroCrossAttn needs query channels that are a multiple of {HEAD_WIDTH}, found {query_channels}: "
                "change block_out_channels of the network preset"
            )
        heads = query_channels // HEAD_WIDTH
        self.attn = Attention(query_channels, context_channels, heads=heads, dim_head=HEAD_WIDTH, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, query_channels, eps=EPS)
        self.norm2 = nn.GroupNorm(GROUPS, context_channels, eps=EPS)

    def forward(self, control_BCHW: Tensor, decoder_BCHW: Tensor, scale: float) -> Tensor:
        """[B, query channels, H, W]. `scale` 0 gives h untouched."""
        if scale == 0:
            return decoder_BCHW
        query_BND, context_BND = (_tokens(n(x)) for n, x in ((self.norm1, decoder_BCHW), (self.norm2, control_BCHW)))
        attended_BND: Tensor = self.attn(query_BND, encoder_hidden_states=context_BND)
        return decoder_BCHW + scale * attended_BND.transpose(1, 2).reshape(decoder_BCHW.shape)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One connector: its kind and the skip (counted from the finest; the middle block comes after the last) that feeds it."""

    kind: Literal["sft", "conv", "cross"]
    skip: int
    control_channels: int
    skip_channels: int  # 0 for "cross"
    decoder_channels: int  # 0 at the middle block

    def build(self) -> nn.Module:
        if self.kind == "cross":
            return ZeroCrossAttn(self.decoder_channels, self.control_channels)
        if self.kind == "conv":
            return ZeroConv(self.control_channels, self.skip_channels)
        return ZeroSFT(self.control_channels, self.skip_channels, self.decoder_channels)


def places(preset: NetworkPreset) -> list[Place]:
    """All connectors in the order of the official checkpoint: by skip, a cross-attention in front of the SFT of its skip.

    For SDXL: 10 SFT and 2 cross-attentions; where the preset asks for zero convolutions, 10 of them alone.
    """
    kind: Literal["sft", "conv"] = "sft" if preset.connector == "zero_sft" else "conv"
    widths, layers = preset.block_out_channels, preset.layers_per_block
    last = len(widths) - 1
    skips = [widths[0]]  # the output of conv_in, then of every residual block and downsampler
    for level, width in enumerate(widths):
        skips += [width] * (layers + (level < last))
    decoder = [widths[min(level + (block == layers), last)] for level in range(last + 1) for block in range(layers + 1)]
    found = []
    for skip, (skip_channels, decoder_channels) in enumerate(zip(skips, decoder, strict=True)):
        if kind == "sft" and skip and skip % (layers + 1) == 0:  # the last skip before the decoder upsamples
            query = widths[skip // (layers + 1)]
            found.append(Place(kind="cross", skip=skip, control_channels=skip_channels, skip_channels=0, decoder_channels=query))
        found.append(
            Place(
                kind=kind, skip=skip, control_channels=skip_channels, skip_channels=skip_channels, decoder_channels=decoder_channels
            )
        )
    middle = Place(
        kind=kind, skip=len(skips), control_channels=widths[-1], skip_channels=widths[-1], decoder_channels=0
    )
    return [*found, middle]


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """`conv` with weight and bias at zero: it adds nothing until it is trained."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None, "a zero convolution has a bias"
    nn.init.zeros_(conv.bias)
    return conv


def _beside(decoder_BCHW: Tensor | None, skip_BCHW: Tensor) -> Tensor:
    return skip_BCHW if decoder_BCHW is None else torch.cat([decoder_BCHW, skip_BCHW], dim=1)


def _tokens(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.flatten(2).transpose(1, 2)
