"""A tiny prior with random weights, as load_restorer reads it: the tokenizers of priors/tiny, text encoders from a seed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from supir_model.network import SupirAdaptor
from supir_model.presets import NetworkPreset, UNet, Vae, get_network
from supir_model.prior import save_prior

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def tiny() -> NetworkPreset:
    return get_network("tiny")


def build(preset: NetworkPreset) -> tuple[UNet, Vae, SupirAdaptor]:
    """UNet, VAE and an adaptor whose every path carries signal: zero convolutions are filled too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae, adaptor = preset.build_unet().eval(), preset.build_vae().eval(), SupirAdaptor(preset).eval()
        for parameter in adaptor.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return unet, vae, adaptor


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory: pytest.TempPathFactory, tiny: NetworkPreset) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    unet, vae, _ = build(tiny)
    save_prior(folder, unet=unet, vae=vae, network="tiny", text_seed=0, dtype=torch.float32)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ROOT / "priors" / "tiny" / name, folder / name)
    return folder
