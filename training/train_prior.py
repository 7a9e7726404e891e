#!/usr/bin/env python3
"""Train the small prior that stands in for SDXL where its weights are not at hand: an autoencoder, then a UNet."""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry, to_dict
from infra.dataset import Dataset
from training.recipes_prior import RECIPES, PriorConfig


def main(argv: list[str]) -> int:
    """Run as `python training/train_prior.py --recipe tiny --input DATASET --output FOLDER`. One process, on the CPU."""
    return run_entry(argv, prog="train_prior", summary=__doc__ or "", recipes=RECIPES, main=run)


def run(config: PriorConfig, options: RunOptions) -> int:
    """Check, train both parts, write the folder."""
    dataset = Dataset(config.input)
    images, captions = dataset.snapshot("images"), dataset.snapshot("captions")
    print(f"train_prior: {images.rows} photographs, {captions.rows} captions; {config.vae.steps} + {config.unet.steps} steps", flush=True)
    if options.dry_run:
        return 0
    train(config, options)
    return 0


def train(config: PriorConfig, options: RunOptions) -> None:
    """Both trainings; the same command continues a run that was stopped."""
    import torch

    from infra.tracking import open_tracker
    from supir_model.presets import get_network
    from training import prior_card, prior_loop, prior_output
    from training.prior_data import load_pool

    torch.set_num_threads(config.threads)
    tracker = open_tracker(options.tracking, "train_prior", f"{config.network} seed {config.seed}")
    tracker.config(to_dict(config))
    pool = load_pool(config)
    preset = get_network(config.network)
    with prior_output.seeded(config.seed):
        vae, unet = preset.build_vae(), preset.build_unet()
    prior_output.keep_levels(vae)
    prior_loop.train_phase("vae", vae, prior_loop.vae_loss(vae, pool, config), config.vae, config, tracker, config.ema_half_life_images)
    vae.eval().requires_grad_(False)
    latents, texts = prior_loop.encode_pool(vae, pool, config)
    prior_output.set_scale(vae, float(1.0 / latents.std()))
    components = prior_output.text_components(config, unet, vae)
    loss = prior_loop.unet_loss(unet, latents / latents.std(), texts, components, config)
    prior_loop.train_phase("unet", unet, loss, config.unet, config, tracker, config.ema_half_life_images)
    prior_output.write(config, unet, vae, texts)
    tracker.close()
    prior_card.write_card(config, components, pool, options.tracking, tracker.run_id)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
