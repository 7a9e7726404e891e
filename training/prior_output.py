"""What train_prior writes: a prior folder that `supir_model.prior.load_components` reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from supir_model.presets import get_network
from supir_model.prior import SDXL_SCHEDULER, Components, load_components, save_prior
from supir_model.text import seeded_encoders
from training.recipes_prior import PriorConfig

TOKENIZERS = ("tokenizer", "tokenizer_2")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights as a function of the seed; torch's global generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def keep_levels(vae: Any) -> None:
    """Start an autoencoder so that its group norms do not forget how bright a picture is.

    A norm divides by the spread of its group; biases of +1 and -1 in turn, on every convolution that feeds the main path, fix that
    spread, so that the level of the signal passes. The posterior starts narrow. With the usual initial values the small networks
    of `tiny` stayed grey for thousands of steps (docs/results/prior.md).
    """
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None and name.endswith(("conv_in", "samplers.0.conv")):
            module.bias.fill_(1.0)
            module.bias[::2] = -1.0
    half = len(vae.quant_conv.bias) // 2
    vae.quant_conv.bias[half:] = -6.0  # log variance
    vae.quant_conv.weight[half:] *= 0.1


def set_scale(vae: Any, scaling_factor: float) -> None:
    """Latents times this factor have unit variance on the corpus, as SDXL's have."""
    vae.register_to_config(scaling_factor=scaling_factor)


def text_components(config: PriorConfig, unet: Any, vae: Any) -> Components:
    """The tokenizers of the configuration and the encoders of its seed, beside the networks in training."""
    from transformers import CLIPTokenizer

    root = Path(config.tokenizers)
    missing = [name for name in TOKENIZERS if not (root / name / "vocab.json").exists()]
    if missing:
        raise ValueError(f"{root} holds no {' and no '.join(missing)}: pass --set tokenizers=FOLDER (the repository's is priors/tiny)")
    preset = get_network(config.network)
    first, second = seeded_encoders(context_dim=preset.context_dim, pooled_dim=preset.pooled_dim, seed=config.text_seed)
    tokenizers = [CLIPTokenizer.from_pretrained(root / name, local_files_only=True) for name in TOKENIZERS]
    return Components(unet=unet, vae=vae, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], text_encoder=first, text_encoder_2=second,
                      scheduler_config=dict(SDXL_SCHEDULER), network=config.network)


def write(config: PriorConfig, unet: Any, vae: Any, texts: list[str]) -> None:
    """Write the folder and read it back once."""
    root = Path(config.output)
    save_prior(root, unet=unet, vae=vae, network=config.network, text_seed=config.text_seed)
    for name in TOKENIZERS:
        if Path(config.tokenizers, name).resolve() != (root / name).resolve():
            shutil.copytree(Path(config.tokenizers, name), root / name, dirs_exist_ok=True)
    load_components(root)
    print(f"train_prior: wrote {root} ({len(set(texts))} captions seen)", flush=True)
