"""Recipes of train_prior: the tiny network's own autoencoder and text-conditioned UNet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One of the two trainings: steps, images a step, crop side in pixels, peak learning rate (cosine to zero)."""

    steps: int
    batch: int
    crop_px: int
    learning_rate: float
    warmup_steps: int = 100


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A whole run of train_prior. `input` is a dataset with images and captions, `output` the folder of the prior."""

    input: str = "demo-output/corpus"
    output: str = "prior"
    network: str = "tiny"
    tokenizers: str = "priors/tiny"  # folder that holds tokenizer/ and tokenizer_2/
    seed: int = 0
    text_seed: int = 0
    held_out_every: int = 0  # photographs left out by infra.holdout; 0 where the corpus holds none that is scored
    short_sides_px: tuple[int, ...] = (192, 320, 512)  # choice: crops of 64 to 128 px then show whole things and textures
    vae: Phase = field(default_factory=lambda: Phase(steps=9000, batch=8, crop_px=40, learning_rate=2e-3))
    shuffled_share: float = 0.7  # choice: the autoencoder's crops with channels in another order; few photographs have pink or violet
    kl_weight: float = 1e-6  # choice: as in latent diffusion, per latent value
    edge_weight: float = 0.05  # choice: L1 of the gradients beside MSE of the pixels, in place of a perceptual loss
    unet: Phase = field(default_factory=lambda: Phase(steps=3500, batch=8, crop_px=80, learning_rate=8e-4))
    crops: int = 2500  # choice: distinct crops whose latents are computed once
    degraded_share: float = 0.15  # choice: crops shown degraded under the negative words, so that the words mean something
    caption_dropout: float = 0.1  # choice: as is common for classifier-free guidance
    ema_half_life_images: float = 1600.0  # choice: 200 steps
    checkpoint_every: int = 250
    threads: int = 1  # choice: small networks gain little from more, and lose much where cores are shared


def tiny() -> PriorConfig:
    """What the shipped prior was made with."""
    return PriorConfig()


def smoke() -> PriorConfig:
    """Seconds, for tests: too short to learn anything."""
    return PriorConfig(
        vae=Phase(steps=4, batch=2, crop_px=32, learning_rate=1e-3, warmup_steps=1),
        unet=Phase(steps=4, batch=2, crop_px=32, learning_rate=1e-3, warmup_steps=1), crops=6, checkpoint_every=2,
    )  # fmt: skip


RECIPES = {"tiny": tiny, "smoke": smoke}
