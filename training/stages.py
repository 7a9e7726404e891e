"""The two stages as the loop takes them: networks, batches as tensors, a look at fixed pictures, and what is left at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supir_model import images
from supir_model.encoder import copy_encoder, decode, encode_mode
from supir_model.network import SupirAdaptor, check_same_network
from supir_model.presets import get_network
from supir_model.prior import load_components
from supir_model.text import encode_prompts
from supir_model.weights import Restorer, adaptor_files, encoder_files, load_encoder
from training.batches import Sample
from training.computing import prepare
from training.folders import local_file, local_weights
from training.loop import Validation
from training.recipes import AdaptorConfig, EncoderConfig, RunConfig
from training.restored import Restoration
from training.sequence import key
from training.step import AdaptorStep, EncoderStep
from training.timesteps import TIMESTEPS

FIXED_TIMESTEPS = [TIMESTEPS // 16 + i * TIMESTEPS // 8 for i in range(8)]  # choice: the middle of each eighth
Picture = np.ndarray[Any, Any]


def pictures(samples: list[Sample], device: torch.device) -> dict[str, Any]:
    """Both sides of the pairs in [-1, 1]."""
    gt_BCHW, lq_BCHW = ([s.gt_HWC for s in samples], [s.lq_HWC for s in samples])
    return {"x_gt_BCHW": images.rgb_to_model(gt_BCHW).to(device), "x_lq_BCHW": images.rgb_to_model(lq_BCHW).to(device)}


def psnr_dB(a_BHWC: Picture, b_BHWC: Picture) -> float:
    """Mean PSNR of 8-bit pictures in RGB, dB; 99 for equal ones."""
    error_B = np.square(a_BHWC.astype(np.float64) - b_BHWC).mean(axis=(1, 2, 3))
    return float(np.mean([10 * math.log10(255**2 / e) if e else 99.0 for e in error_B]))


def sheet(*columns_BHWC: Picture) -> Picture:
    """One row a sample, one column an argument."""
    return np.concatenate([np.concatenate(list(column), axis=0) for column in columns_BHWC], axis=1)


@dataclass(kw_only=True)
class EncoderStage:
    """Stage 1."""

    config: EncoderConfig
    step: EncoderStep
    fixed: list[Sample]
    device: torch.device
    name: str = "encoder"

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """What the step reads."""
        return pictures(samples, self.device)

    def validate(self) -> Validation:
        """PSNR of D(E_dr(x_lq)) beside that of D(E(x_lq)) and of x_lq; degraded / stage 1 / original as a picture."""
        if not self.fixed:
            return Validation(metrics={})
        vae, batch = self.step.vae, self.collate(self.fixed)
        stage1, plain = (
            torch.cat([decode(vae, encode_mode(vae, encoder, x)).float().cpu() for x in batch["x_lq_BCHW"].split(1)])
            for encoder in (self.step.encoder, vae.encoder)
        )
        gt_BHWC, lq_BHWC = np.stack([s.gt_HWC for s in self.fixed]), np.stack([s.lq_HWC for s in self.fixed])
        stage1_BHWC = images.model_to_rgb(stage1)
        metrics = {
            "validation/psnr_stage1": psnr_dB(stage1_BHWC, gt_BHWC),
            "validation/psnr_original_encoder": psnr_dB(images.model_to_rgb(plain), gt_BHWC),
            "validation/psnr_degraded": psnr_dB(lq_BHWC, gt_BHWC),
        }
        return Validation(metrics=metrics, pictures={"degraded_stage1_original": sheet(lq_BHWC, stage1_BHWC, gt_BHWC)})

    def alarms(self, metrics: dict[str, float]) -> list[str]:
        """What a collapsing encoder looks like: decoded pictures go to one tone."""
        found, config = [], self.config
        if abs(metrics["decoded_mean"] - metrics["target_mean"]) > config.alarm_mean:
            found.append(f"decoded mean {metrics['decoded_mean']:.2f}, the ground truth has {metrics['target_mean']:.2f}")
        if metrics["decoded_variance"] < config.alarm_variance * metrics["target_variance"]:
            found.append(f"decoded variance {metrics['decoded_variance']:.3f}, the ground truth has {metrics['target_variance']:.3f}")
        cures = {"paper": "the printed loss has a constant encoder as its minimum; use loss=frozen_encoder"}
        return [f"{text}: {cures.get(config.loss, 'the encoder is collapsing, lower optimizer.lr')}" for text in found]

    def export(self, weights: dict[str, Tensor]) -> dict[str, bytes]:
        """A folder that supir_model.weights loads as an encoder."""
        self.step.load_state_dict(weights, strict=False)
        return encoder_files(self.step.encoder, self.config.network)


@dataclass(kw_only=True)
class AdaptorStage:
    """Stage 2."""

    config: AdaptorConfig
    step: AdaptorStep
    fixed: list[Sample]
    device: torch.device
    restoration: Restoration
    name: str = "adaptor"

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """What the step reads; each sample's noise comes from its own generator, on the CPU."""
        batch = {
            **pictures(samples, self.device),
            "prompts": [sample.prompt for sample in samples],
            "timestep_B": torch.tensor([sample.timestep for sample in samples], device=self.device),
            "noise_BCHW": self._noise([sample.noise_seed for sample in samples]),
        }
        if self.config.gt_latent == "sample":
            batch["posterior_noise_BCHW"] = self._noise([key(self.config.seed, "posterior", s.position) >> 1 for s in samples])
        if self.config.batch.true_sizes and all(sample.size_ids for sample in samples):
            batch["time_ids_B6"] = torch.tensor([sample.size_ids for sample in samples], dtype=torch.float32, device=self.device)
        return batch

    def _noise(self, seeds: list[int]) -> Tensor:
        network = get_network(self.config.network)
        side = self.config.batch.crop_px // network.vae_factor
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn((network.latent_channels, side, side), generator=g) for g in generators]).to(self.device)

    @cached_property
    def _parts(self) -> list[list[Sample]]:
        """The fixed pictures, no more at a time than a step has: it is known that those fit."""
        size = self.config.batch.micro_batch
        return [self.fixed[i : i + size] for i in range(0, len(self.fixed), size)]

    @cached_property
    def _fixed_batches(self) -> list[dict[str, Any]]:
        return [self.collate(part) for part in self._parts]

    def _fixed_loss(self, timestep: int) -> float:
        """Of all fixed pictures at one timestep."""
        sums = []
        for batch in self._fixed_batches:
            size = len(batch["timestep_B"])
            loss, _ = self.step({**batch, "timestep_B": torch.full((size,), timestep, device=self.device)})
            sums.append(float(loss) * size)
        return sum(sums) / len(self.fixed)

    def validate(self) -> Validation:
        """On fixed pictures: the loss at eight fixed timesteps with fixed noise, and the pictures restored."""
        if not self.fixed:
            return Validation(metrics={})
        losses = {f"validation/loss/t{timestep:03d}": self._fixed_loss(timestep) for timestep in FIXED_TIMESTEPS}
        metrics = {"validation/loss": sum(losses.values()) / len(losses), **losses}
        if not self.config.validation.restore_steps:
            return Validation(metrics=metrics)
        gt_BHWC, lq_BHWC = np.stack([s.gt_HWC for s in self.fixed]), np.stack([s.lq_HWC for s in self.fixed])
        restored_BHWC = np.concatenate([self.restoration.restored(part) for part in self._parts])
        metrics["validation/psnr_restored"] = psnr_dB(restored_BHWC, gt_BHWC)
        return Validation(metrics=metrics, pictures={"degraded_restored_original": sheet(lq_BHWC, restored_BHWC, gt_BHWC)})

    def alarms(self, metrics: dict[str, float]) -> list[str]:
        """Predicting no noise at all has the loss 1; well above it the network is being destroyed."""
        return [f"loss {metrics['loss']:.2f}, above 2 where predicting nothing gives 1: lower optimizer.lr"] if metrics["loss"] > 2 else []

    def export(self, weights: dict[str, Tensor]) -> dict[str, bytes]:
        """A folder that supir_model.weights loads as an adaptor."""
        self.step.load_state_dict(weights, strict=False)
        return adaptor_files(self.step.supir.adaptor)


def build_stage(config: RunConfig, fixed: list[Sample], device: torch.device) -> EncoderStage | AdaptorStage:
    """The stage that a configuration is of, its networks on the device."""
    if isinstance(config, EncoderConfig):
        return build_encoder_stage(config, fixed, device)
    assert isinstance(config, AdaptorConfig), f"no stage for a {type(config).__name__}"
    return build_adaptor_stage(config, fixed, device)


def build_encoder_stage(config: EncoderConfig, fixed: list[Sample], device: torch.device) -> EncoderStage:
    """Stage 1 from the prior's autoencoder."""
    vae = _components(config, device).vae
    encoder = copy_encoder(vae).float()
    step = EncoderStep(
        vae,
        encoder,
        loss=config.loss,
        latent_weight=config.latent_weight,
        bf16=config.precision == "bf16",
        kl_weight=config.kl_weight,
        perceptual_weight=config.perceptual_weight,
        perceptual=_perceptual(config, device),
    ).to(device)
    prepare(step, config.compute)
    return EncoderStage(config=config, step=step, fixed=fixed, device=device)


def _perceptual(config: EncoderConfig, device: torch.device) -> torch.nn.Module | None:
    if not config.perceptual_weight or config.perceptual is None:
        return None
    from supir_model.perceptual import load_perceptual

    return load_perceptual(local_file(config.perceptual)).to(device)


def build_adaptor_stage(config: AdaptorConfig, fixed: list[Sample], device: torch.device) -> AdaptorStage:
    """Stage 2 from the prior, its encoder half copied into the trunk, and the stage-1 encoder."""
    components, preset = _components(config, device), get_network(config.network)
    adaptor = SupirAdaptor.from_unet(components.unet, preset).float()
    dtype = next(components.vae.parameters()).dtype
    encoder = load_encoder(local_weights(config.encoder), components.vae).to(device, dtype) if config.encoder else components.vae.encoder

    def encode_text(prompts: list[str]) -> tuple[Tensor, Tensor]:
        encoded = encode_prompts(components, prompts)
        return encoded.context_BND, encoded.pooled_BD

    step = AdaptorStep(
        unet=components.unet,
        adaptor=adaptor,
        vae=components.vae,
        encoder=encoder,
        encode_text=encode_text,
        conditioning_size_px=config.conditioning_size_px,
        bf16=config.precision == "bf16",
        min_snr_gamma=config.min_snr_gamma,
    ).to(device)
    prepare(step, config.compute)
    restorer = Restorer(components=components, encoder=encoder, adaptor=adaptor)
    restoration = Restoration(restorer=restorer, config=config)
    return AdaptorStage(config=config, step=step, fixed=fixed, device=device, restoration=restoration)


def _components(config: RunConfig, device: torch.device) -> Any:
    components = load_components(
        local_weights(config.prior), str(device), torch.bfloat16 if config.precision == "bf16" else torch.float32
    )
    try:
        check_same_network(components.unet, get_network(config.network))
    except ValueError as difference:
        name = f"network {components.network!r}" if components.network else "another network"
        raise ValueError(
            f"{config.prior} is a prior of {name}, this run trains {config.network!r}: choose another prior, or --set network= "
            f"({difference})"
        ) from difference
    return components
