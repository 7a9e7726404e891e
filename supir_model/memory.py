"""How much memory a restoration needs, estimated before anything is loaded; rather too high (docs/results/memory.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supir_model.checkpoint_file import TensorFile, open_file, open_folder
from supir_model.exact_vae import HOLD_BYTES
from supir_model.presets import NetworkPreset, SamplingPreset, get_network
from supir_model.prior import PRIOR_FILE

IMAGE_BYTES = 80  # choice: bytes a pixel of the working size for whole pictures and latents; measured 55 (docs/results/memory.md)
FIXED_BYTES = 100 * 2**20  # measured: what libraries take for themselves and an allocator does not give back (docs/results/memory.md)
VAE_WIDTHS = 16  # measured: activations of the full size and first width that a decoder holds at once, with what its convolutions take
UNET_WIDTHS = 32  # measured: the same of a UNet at the latent's size; the tiny one 25 to 31
RIM_PX = 64  # what a tile reads around itself, both sides together, rounded up
FULL_PRECISION_BYTES = 4
TEXT_PARTS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes: `weights` of all networks, `images` for what grows with the picture, `network` for the larger of VAE and UNet at work."""

    weights: int
    images: int
    network: int

    @property
    def total(self) -> int:
        return self.weights + self.images + self.network


def estimate(
    prior: str | Path,
    *,
    encoder: str | Path | None,
    adaptor: str | Path | None,
    height: int,
    width: int,
    settings: SamplingPreset,
    element_bytes: int,
) -> Need:
    """What one picture of `height` x `width` pixels at the working size needs, in a precision of `element_bytes` a number.

    Only headers of the files are read. ValueError that teaches if one is missing or no file of weights.
    """
    return Need(
        weights=sum(_numbers(file) for file in _files(prior, encoder, adaptor)) * element_bytes,
        images=image_bytes(_network(prior), height, width, settings, element_bytes),
        network=network_bytes(_network(prior), height, width, settings, element_bytes),
    )


def image_bytes(network: NetworkPreset, height: int, width: int, settings: SamplingPreset, element_bytes: int) -> int:
    """What grows with the picture: pictures, latents, activations on the latent's grid, and what exact tiles of the autoencoder hold."""
    pixels = height * width
    held_channels = 2 * network.vae_block_out_channels[1]  # in front of the last blocks of the decoder: the one before, and the next
    tiled = 0 < settings.vae_tile_px < max(height, width) and settings.vae_tiling != "released"
    held = min(HOLD_BYTES, held_channels * pixels * _vae_bytes(element_bytes)) if tiled else 0
    return FIXED_BYTES + IMAGE_BYTES * pixels + held


def network_bytes(network: NetworkPreset, height: int, width: int, settings: SamplingPreset, element_bytes: int) -> int:
    """Activations of the autoencoder or of the UNet (both halves of the guidance), whichever are more."""
    vae_px, unet_px = (_tile_pixels(height, width, tile) for tile in (settings.vae_tile_px, settings.tile_px))
    vae = VAE_WIDTHS * network.vae_block_out_channels[0] * vae_px * _vae_bytes(element_bytes)
    unet = UNET_WIDTHS * network.block_out_channels[0] * 2 * unet_px * element_bytes // network.vae_factor**2
    return max(vae, unet)


def _vae_bytes(element_bytes: int) -> int:
    return FULL_PRECISION_BYTES if element_bytes == 2 else element_bytes  # fp16 leaves the autoencoder in fp32


def _tile_pixels(height: int, width: int, tile_px: int) -> int:
    side = tile_px + RIM_PX if tile_px else max(height, width)
    return min(height, side) * min(width, side)


def _network(prior: str | Path) -> NetworkPreset:
    ours = Path(prior) / PRIOR_FILE
    return get_network(json.loads(ours.read_text())["network"] if ours.is_file() else "sdxl_release")


def _files(prior: str | Path, encoder: str | Path | None, adaptor: str | Path | None) -> Iterator[TensorFile]:
    root = Path(prior)
    if root.is_file():
        yield open_file(root)
    for part in ("unet", "vae", *TEXT_PARTS):
        files = sorted((root / part).glob("*.safetensors"))
        yield from (open_file(path) for path in [path for path in files if "fp16" not in path.name] or files)
    for place in dict.fromkeys(Path(place) for place in (encoder, adaptor) if place):  # an official file holds both
        yield open_folder(place) if place.is_dir() else open_file(place)


def _numbers(file: TensorFile) -> int:
    return sum(tensor.numel() for tensor in file.meta.values())
