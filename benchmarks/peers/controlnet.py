"""A plain ControlNet training step on SDXL as diffusers' example script does it: the same prior, data shapes, precision and optimizer.

It trains a copy of the UNet's encoder half too, but reads the degraded picture as pixels, so one picture less goes through the autoencoder,
and its residuals are added without SUPIR's normalising and attending connectors.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, DDPMScheduler
from torch.nn.functional import mse_loss

from supir_model.conditioning import size_time_ids
from training.step import compute


class ControlNetStep(torch.nn.Module):
    """A batch as stage 2 takes it -> (loss, {})."""

    def __init__(self, unet: Any, vae: Any, text: tuple[torch.Tensor, torch.Tensor], bf16: bool) -> None:
        super().__init__()
        widths = vae_downscaling(len(vae.config.block_out_channels))
        self.controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        self._frozen, self._text, self._bf16 = (unet, vae), text, bf16
        self._noises = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        unet, vae = self._frozen
        noise_BCHW, timestep_B = batch["noise_BCHW"], batch["timestep_B"]
        with compute(noise_BCHW, self._bf16):
            with torch.no_grad():
                z_BCHW = vae.encode(batch["x_gt_BCHW"].to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            noisy_BCHW = self._noises.add_noise(z_BCHW.float(), noise_BCHW, timestep_B)
            context_BND, pooled_BD = self._text
            added = {"text_embeds": pooled_BD, "time_ids": size_time_ids(len(noise_BCHW), 1024, noise_BCHW.device)}
            common = {"encoder_hidden_states": context_BND, "added_cond_kwargs": added, "return_dict": False}
            down, middle = self.controlnet(noisy_BCHW, timestep_B, controlnet_cond=(batch["x_lq_BCHW"] + 1) / 2, **common)
            eps_BCHW = unet(
                noisy_BCHW, timestep_B, down_block_additional_residuals=down, mid_block_additional_residual=middle, **common
            )[0]
        return mse_loss(eps_BCHW.float(), noise_BCHW), {}


def vae_downscaling(blocks: int) -> tuple[int, ...]:
    """Widths of ControlNet's small encoder of pixels, which halves the picture as often as an autoencoder of so many blocks."""
    return (16, 32, 96, 256)[-blocks:]
