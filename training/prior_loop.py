"""The two trainings of train_prior, in one process: an autoencoder, then a UNet that predicts noise in its latents.

Every draw is a function of (seed, purpose, step), so a run that is stopped and started again takes the same steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infra.config import hash_config
from infra.tracking import Tracker
from supir_model.conditioning import size_time_ids
from supir_model.degradation.streams import stream
from supir_model.images import rgb_to_model
from supir_model.schedule import sdxl_schedule
from supir_model.text import encode_prompts
from training.prior_data import Picture, as_rows, crop_of, prior_crop
from training.recipes_prior import Phase, PriorConfig

SIZES_PX = (128, 192, 256, 512, 1024)  # choice: the size condition is drawn, so that a caller may name any of them
CLIP_NORM = 1.0  # choice
SHOW_EVERY = 50
Loss = Callable[[int], Tensor]


def train_phase(name: str, module: nn.Module, loss_of: Loss, phase: Phase, config: PriorConfig, tracker: Tracker,
                half_life_images: float | None = None) -> None:
    """AdamW with warm-up and cosine decay; checkpoints every so often, and continues from the last one.

    With a half-life the module ends with the exponential moving average of its weights. Raises ValueError when a loss is not finite.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    folder = Path(config.output, "checkpoint")
    first = _restore(folder, name, config, module, optimizer, average)
    decay = 0.5 ** (phase.batch / half_life_images) if half_life_images else 0.0
    started = time.monotonic()
    for step in range(first, phase.steps):
        lr = learning_rate(phase, step)
        optimizer.param_groups[0]["lr"] = lr
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise ValueError(f"{name}: the loss at step {step} is {loss.item()}: "
                             f"lower --set {name}.learning_rate (now {phase.learning_rate})")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        for key, value in module.state_dict().items():
            average[key].lerp_(value, 1.0 - min(decay, (1 + step) / (10 + step)))
        tracker.metrics({f"{name}/loss": loss.item(), f"{name}/lr": lr, f"{name}/grad_norm": float(norm)}, step)
        if (step + 1) % SHOW_EVERY == 0:
            rate = (step + 1 - first) / (time.monotonic() - started)
            print(f"{name}: step {step + 1}/{phase.steps}, loss {loss.item():.4f}, {rate:.2f} steps/s, "
                  f"{(phase.steps - step - 1) / rate:.0f} s left", flush=True)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == phase.steps:
            _save(folder, name, config, step + 1, module, optimizer, average)
    module.load_state_dict(average)


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / phase.warmup_steps)
    return phase.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / phase.steps))


def vae_loss(vae: Any, pool: list[Picture], config: PriorConfig) -> Loss:
    """MSE of pixels, L1 of their gradients and a little KL, on crops of step `step`."""

    def loss_of(step: int) -> Tensor:
        numbers = range(step * config.vae.batch, (step + 1) * config.vae.batch)
        crops = [crop_of(pool, config.seed, "prior/vae", number, config.vae.crop_px, config.shuffled_share) for number in numbers]
        x_BCHW = rgb_to_model(as_rows(crops))
        posterior = vae.encode(x_BCHW).latent_dist
        y_BCHW = vae.decode(posterior.sample(_generator(config.seed, "prior/posterior", step))).sample
        edges = sum((torch.diff(y_BCHW, dim=d) - torch.diff(x_BCHW, dim=d)).abs().mean() for d in (2, 3))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return F.mse_loss(y_BCHW, x_BCHW) + config.edge_weight * edges + config.kl_weight * kl

    return loss_of


def unet_loss(unet: Any, latents_NCHW: Tensor, texts: list[str], components: Any, config: PriorConfig) -> Loss:
    """Noise prediction on SDXL's schedule (all timesteps alike), with caption dropout; `latents` are scaled to unit variance."""
    known = sorted({*texts, ""})
    encoded = encode_prompts(components, known)
    row_of = {text: row for row, text in enumerate(known)}
    abar = 1 / (1 + sdxl_schedule().sigma_T ** 2)

    def loss_of(step: int) -> Tensor:
        rng = stream(config.seed, "prior/step", step)
        batch = config.unet.batch
        chosen = rng.integers(len(latents_NCHW), size=batch)
        dropped = rng.random(batch) < config.caption_dropout
        rows = [row_of["" if drop else texts[i]] for i, drop in zip(chosen, dropped)]
        t_B = torch.from_numpy(rng.integers(len(abar), size=batch))
        sizes = torch.cat([size_time_ids(1, int(rng.choice(SIZES_PX))) for _ in range(batch)])
        z_BCHW = latents_NCHW[chosen]
        noise = torch.randn(z_BCHW.shape, generator=_generator(config.seed, "prior/noise", step))
        a_B111 = abar[t_B][:, None, None, None]
        noisy = a_B111.sqrt() * z_BCHW + (1 - a_B111).sqrt() * noise
        added = {"text_embeds": encoded.pooled_BD[rows], "time_ids": sizes}
        return F.mse_loss(unet(noisy, t_B, encoder_hidden_states=encoded.context_BND[rows], added_cond_kwargs=added).sample, noise)

    return loss_of


@torch.no_grad()
def encode_pool(vae: Any, pool: list[Picture], config: PriorConfig) -> tuple[Tensor, list[str]]:
    """Latents (not yet scaled) and texts of the crops that the UNet learns from."""
    latents, texts = [], []
    for start in range(0, config.crops, config.unet.batch):
        crops = [prior_crop(pool, config, number) for number in range(start, min(start + config.unet.batch, config.crops))]
        latents.append(vae.encode(rgb_to_model(as_rows(crops))).latent_dist.mode())
        texts += [crop.text for crop in crops]
    return torch.cat(latents), texts


def _generator(seed: int, purpose: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(stream(seed, purpose, step).integers(2**62)))


def _identity(name: str, config: PriorConfig) -> str:
    neutral = {"output", "threads", "checkpoint_every"} | ({"unet", "crops", "caption_dropout"} if name == "vae" else set())
    return hash_config({key: value for key, value in asdict(config).items() if key not in neutral})


def _save(folder: Path, name: str, config: PriorConfig, step: int, module: nn.Module, optimizer: Any, average: dict[str, Tensor]) -> None:
    """One file, written beside and moved into place: complete or absent."""
    names = [key for key, _ in module.named_parameters()]
    state = optimizer.state_dict()["state"]
    tensors = {f"model/{key}": value for key, value in module.state_dict().items()} | {f"ema/{key}": v for key, v in average.items()}
    for index, key in enumerate(names):
        tensors |= {f"adam/{key}/{part}": state[index][part] for part in ("exp_avg", "exp_avg_sq", "step")}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}.part"
    save_file({key: value.contiguous() for key, value in tensors.items()}, part,
              metadata={"position": json.dumps({"step": step, "identity": _identity(name, config)})})
    os.replace(part, folder / f"{name}.safetensors")


def _restore(folder: Path, name: str, config: PriorConfig, module: nn.Module, optimizer: Any, average: dict[str, Tensor]) -> int:
    from safetensors import safe_open

    path = folder / f"{name}.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        position = json.loads(file.metadata()["position"])
    if position["identity"] != _identity(name, config):
        raise ValueError(f"{path} belongs to another configuration: choose another --output, or remove {folder}")
    tensors = load_file(path)
    module.load_state_dict({key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")})
    average.update({key.removeprefix("ema/"): value for key, value in tensors.items() if key.startswith("ema/")})
    names = [key for key, _ in module.named_parameters()]
    state = {i: {part: tensors[f"adam/{key}/{part}"] for part in ("exp_avg", "exp_avg_sq", "step")} for i, key in enumerate(names)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    print(f"{name}: continues from step {position['step']}", flush=True)
    return int(position["step"])
