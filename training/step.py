"""What one step minimises, for both stages: modules whose forward takes a batch and returns (loss, detached parts).

Only what is trained is registered; the frozen networks hang in tuples, so an engine that shards, saves or casts a step
module never sees them. Shapes: B batch, C channels, H height, W width, N tokens, D width of a token; images in [-1, 1],
latents scaled by the autoencoder's factor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from supir_model.conditioning import size_time_ids
from supir_model.denoiser import scale_in
from supir_model.encoder import decode, encode_mode, encode_sample, moments
from supir_model.network import SupirAdaptor, SupirUNet
from supir_model.schedule import sdxl_schedule

Batch = dict[str, Any]
Parts = dict[str, Tensor]
EncodeText = Callable[[list[str]], tuple[Tensor, Tensor]]
"""prompts -> (context_BND, pooled_BD)."""
# Autoencoders and encoders of diffusers have no static types of their parts: they are Any here.


def compute(like: Tensor, bf16: bool) -> AbstractContextManager[Any]:
    """Where the networks run: bf16 under autocast (which keeps norms and the like in fp32), or plain fp32."""
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else nullcontext()


def squared_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean squared difference of each sample, fp32, [B]."""
    return (a_BCHW.float() - b_BCHW.float()).square().flatten(1).mean(dim=1)


class EncoderStep(nn.Module):
    """Stage 1: the encoder learns to see the clean image in the degraded one; the decoder is fixed (Sec. 3.1, Eq. 1).

    "frozen_encoder": ||D(E_dr(x_lq)) - D(E(x_gt))||^2 + w ||E_dr(x_lq) - E(x_gt)||^2 with the original encoder E, which does
    not move. "paper": ||D(E_dr(x_lq)) - D(E_dr(x_gt))||^2 as printed; both sides move, and a constant encoder is its minimum
    (docs/numerics.md). Either may add `kl_weight` times the divergence of E_dr's posterior from a unit normal, and
    `perceptual_weight` times `perceptual` (pictures -> distance_B) of the two decoded pictures.
    """

    def __init__(
        self,
        vae: Any,
        encoder: Any,
        *,
        loss: Literal["frozen_encoder", "paper"],
        latent_weight: float,
        bf16: bool,
        kl_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._frozen = (vae.requires_grad_(False).eval(), perceptual)
        self._loss, self._latent_weight, self._bf16 = loss, latent_weight, bf16
        self._kl_weight, self._perceptual_weight = kl_weight, perceptual_weight
        self.layout = torch.contiguous_format

    @property
    def vae(self) -> Any:
        """The frozen autoencoder: decoder, quantisation layers and the original encoder."""
        return self._frozen[0]

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        """`x_gt_BCHW`, `x_lq_BCHW` -> mean loss; parts by sample: loss_B, its terms, and the decoded moments."""
        x_gt_BCHW, x_lq_BCHW = (batch[name].contiguous(memory_format=self.layout) for name in ("x_gt_BCHW", "x_lq_BCHW"))
        with compute(x_gt_BCHW, self._bf16):
            mean_BCHW, std_BCHW = moments(self.vae, self.encoder, x_lq_BCHW)
            z_BCHW, target_z_BCHW = mean_BCHW * float(self.vae.config.scaling_factor), self._target(x_gt_BCHW)
            x_BCHW, target_BCHW = decode(self.vae, z_BCHW), self._decode_target(target_z_BCHW)
        image_B, latent_B = squared_error(x_BCHW, target_BCHW), squared_error(z_BCHW, target_z_BCHW)
        loss_B = image_B + (self._latent_weight * latent_B if self._loss == "frozen_encoder" else 0.0)
        more = self._more(mean_BCHW, std_BCHW, x_BCHW, target_BCHW)
        loss_B = loss_B + sum(weight * value_B for weight, value_B in more.values()) if more else loss_B
        parts = {"loss_B": loss_B, "image_B": image_B, "latent_B": latent_B, **_moments("decoded", x_BCHW), **_moments("target", x_gt_BCHW)}
        parts |= {name: value_B for name, (_, value_B) in more.items()}
        return loss_B.mean(), {name: value.detach() for name, value in parts.items()}

    def _more(self, mean_BCHW: Tensor, std_BCHW: Tensor, x_BCHW: Tensor, target_BCHW: Tensor) -> dict[str, tuple[float, Tensor]]:
        """The optional terms: name -> (weight, value of each sample)."""
        found = {}
        if self._kl_weight:
            found["kl_B"] = (self._kl_weight, kl_divergence(mean_BCHW, std_BCHW))
        if self._perceptual_weight:
            distance = self._frozen[1]
            assert distance is not None, "a perceptual weight without a perceptual distance"
            found["perceptual_B"] = (self._perceptual_weight, distance(x_BCHW, target_BCHW))
        return found

    def _target(self, x_gt_BCHW: Tensor) -> Tensor:
        if self._loss == "paper":
            return encode_mode(self.vae, self.encoder, x_gt_BCHW)
        with torch.no_grad():
            return encode_mode(self.vae, self.vae.encoder, x_gt_BCHW)

    def _decode_target(self, z_BCHW: Tensor) -> Tensor:
        with torch.set_grad_enabled(self._loss == "paper" and torch.is_grad_enabled()):
            return decode(self.vae, z_BCHW)


def kl_divergence(mean_BCHW: Tensor, std_BCHW: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats of each sample's latent, the mean of its numbers, fp32, [B]."""
    mean_BCHW, variance_BCHW = mean_BCHW.float(), std_BCHW.float().square()
    return (0.5 * (mean_BCHW.square() + variance_BCHW - 1 - variance_BCHW.log())).flatten(1).mean(dim=1)


def _moments(name: str, x_BCHW: Tensor) -> Parts:
    """Mean and variance of each image: a collapsing encoder shows here first."""
    flat = x_BCHW.float().flatten(1)
    return {f"{name}_mean_B": flat.mean(dim=1), f"{name}_variance_B": flat.var(dim=1)}


class AdaptorStep(nn.Module):
    """Stage 2: ||eps - eps_theta(z_t, t; c, z_lq)||^2 on SDXL's schedule, over trunk and connectors alone (Sec. 3.1, 4.1).

    z_lq is the stage-1 latent of the degraded image. The latent of the ground truth is the mode of the frozen encoder's
    posterior, or, where the batch brings noise for it, a sample. `min_snr_gamma` above 0 weights a sample by
    min(SNR, gamma) / SNR, SNR = 1 / sigma^2 (Hang et al. 2023, Eq. 7, for predicted noise): less of the nearly clean ones.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        adaptor: SupirAdaptor,
        vae: Any,
        encoder: Any,
        encode_text: EncodeText,
        conditioning_size_px: int,
        bf16: bool,
        min_snr_gamma: float = 0.0,
    ) -> None:
        super().__init__()
        self._min_snr_gamma = min_snr_gamma
        self.supir = SupirUNet(unet, adaptor)
        self._frozen = (vae.requires_grad_(False).eval(), encoder.requires_grad_(False).eval())
        self._encode_text = encode_text
        self._size_px, self._bf16 = conditioning_size_px, bf16
        self._schedule = sdxl_schedule()
        self.layout = torch.contiguous_format

    @property
    def autoencoders(self) -> tuple[Any, Any]:
        """The frozen autoencoder, and the stage-1 encoder (which may be the autoencoder's own)."""
        return self._frozen

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        """`x_gt_BCHW`, `x_lq_BCHW`, `prompts`, `timestep_B`, `noise_BCHW` -> mean loss; parts by sample: loss_B, with weights error_B.

        The batch may have `posterior_noise_BCHW` (unit normal: z_gt is a sample) and `time_ids_B6` (sizes of its own).
        """
        noise_BCHW, timestep_B = batch["noise_BCHW"].contiguous(memory_format=self.layout), batch["timestep_B"]
        with compute(noise_BCHW, self._bf16):
            with torch.no_grad():
                z_BCHW, z_lq_BCHW = self._latents(batch)
                context_BND, pooled_BD = self._encode_text(batch["prompts"])
            sigma_B111 = self._schedule.sigma_of(timestep_B).view(-1, 1, 1, 1)
            x_BCHW = scale_in(z_BCHW + sigma_B111 * noise_BCHW, sigma_B111)
            sizes_B6 = batch.get("time_ids_B6")
            if sizes_B6 is None:
                sizes_B6 = size_time_ids(len(x_BCHW), self._size_px, x_BCHW.device)
            added = {"text_embeds": pooled_BD, "time_ids": sizes_B6}
            eps_BCHW = self.supir(x_BCHW, timestep_B, context_BND, added, z_lq_BCHW)
        error_B = squared_error(eps_BCHW, noise_BCHW)
        if not self._min_snr_gamma:
            return error_B.mean(), {"loss_B": error_B.detach()}
        loss_B = error_B * min_snr_weight(sigma_B111.flatten(), self._min_snr_gamma)
        return loss_B.mean(), {"loss_B": loss_B.detach(), "error_B": error_B.detach()}

    def _latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """z_gt in fp32 by the original encoder, z_lq by that of stage 1."""
        vae, encoder = self._frozen
        x_gt_BCHW, x_lq_BCHW = (batch[name].contiguous(memory_format=self.layout) for name in ("x_gt_BCHW", "x_lq_BCHW"))
        noise_BCHW = batch.get("posterior_noise_BCHW")
        z_BCHW = encode_mode(vae, vae.encoder, x_gt_BCHW) if noise_BCHW is None else encode_sample(vae, x_gt_BCHW, noise_BCHW)
        return z_BCHW.float(), encode_mode(vae, encoder, x_lq_BCHW)


def min_snr_weight(sigma_B: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR with SNR = 1 / sigma^2: 1 for noisy samples, gamma sigma^2 for nearly clean ones."""
    return (gamma * sigma_B**2).clamp(max=1.0)
