"""Between pixels and latents: the degradation-robust encoder, the original one, and the fixed decoder (Sec. 3.1; Eq. 1).

x_BCHW float in [-1, 1], RGB; z_BCHW latents already multiplied by the autoencoder's scaling factor.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Encoder as DegradationRobustEncoder  # a fine-tuned copy of the VAE's encoder
from torch import Tensor

from supir_model.exact_vae import exact_decoder, exact_encoder
from supir_model.presets import Vae, VaeTiling
from supir_model.tiled_vae import tiled_decoder, tiled_encoder

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # SDXL's autoencoder

__all__ = ["DegradationRobustEncoder", "copy_encoder", "decode", "encode_mode", "encode_sample", "moments"]


def copy_encoder(vae: Vae) -> DegradationRobustEncoder:
    """A degradation-robust encoder before its first step: a trainable copy of the autoencoder's encoder."""
    encoder: DegradationRobustEncoder = copy.deepcopy(vae.encoder).requires_grad_(True)
    return encoder


def encode_mode(
    vae: Vae, encoder: DegradationRobustEncoder, x_BCHW: Tensor, *, tile_px: int = 0, tiling: VaeTiling = "exact"
) -> Tensor:
    """z_lq: the posterior's mean by `encoder`. `vae` lends its quant_conv and scaling factor; `tile_px` 0 does not tile."""
    mean_BCHW, _ = moments(vae, encoder, x_BCHW, tile_px=tile_px, tiling=tiling)
    return mean_BCHW * float(vae.config.scaling_factor)


def encode_sample(vae: Vae, x_BCHW: Tensor, noise_BCHW: Tensor, *, tile_px: int = 0, tiling: VaeTiling = "exact") -> Tensor:
    """A sample of the posterior by the autoencoder's own encoder; `noise_BCHW` unit normal, of the latent's shape."""
    mean_BCHW, std_BCHW = moments(vae, vae.encoder, x_BCHW, tile_px=tile_px, tiling=tiling)
    return (mean_BCHW + std_BCHW * noise_BCHW.to(mean_BCHW)) * float(vae.config.scaling_factor)


def moments(
    vae: Vae, encoder: DegradationRobustEncoder, x_BCHW: Tensor, *, tile_px: int = 0, tiling: VaeTiling = "exact"
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior, not scaled."""
    hidden_BCHW = _encode(encoder, x_BCHW, tile_px, tiling)
    mean_BCHW, logvar_BCHW = vae.quant_conv(hidden_BCHW).chunk(2, dim=1)
    return mean_BCHW, torch.exp(0.5 * logvar_BCHW.clamp(LOGVAR_MIN, LOGVAR_MAX))


def decode(vae: Vae, z_BCHW: Tensor, *, tile_px: int = 0, tiling: VaeTiling = "exact") -> Tensor:
    """x_BCHW, not clipped. `tile_px` is the side of a tile in pixels of the image."""
    hidden_BCHW = vae.post_quant_conv(z_BCHW / vae.config.scaling_factor)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return _decode(vae.decoder, hidden_BCHW, tile_px // factor, tiling) if tile_px else vae.decoder(hidden_BCHW)  # type: ignore[no-any-return]


def _encode(encoder: DegradationRobustEncoder, x_BCHW: Tensor, tile_px: int, tiling: VaeTiling) -> Tensor:
    if not tile_px:
        return encoder(x_BCHW)  # type: ignore[no-any-return]
    if tiling == "released":
        return tiled_encoder(encoder, x_BCHW, tile_px)
    return exact_encoder(encoder, x_BCHW, tile_px, attention="global" if tiling == "exact" else "tile")


def _decode(decoder: Any, z_BCHW: Tensor, tile: int, tiling: VaeTiling) -> Tensor:
    if tiling == "released":
        return tiled_decoder(decoder, z_BCHW, tile)
    return exact_decoder(decoder, z_BCHW, tile, attention="global" if tiling == "exact" else "tile")
