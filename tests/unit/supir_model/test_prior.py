"""The shipped prior: it loads, is small, draws, and its autoencoder gives photographs back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supir_model.images import crop, decode, model_to_unit, resize_short_side, rgb_to_model
from supir_model.presets import get_network
from supir_model.prior import Components, load_components, save_prior
from tests.checkpoints import clip_pair
from tests.helpers import ROOT, photographs

PRIOR = ROOT / "priors" / "tiny"
LIMIT_BYTES = 20 * 2**20  # choice: what a repository may carry
PSNR_FLOOR_DB = 27.0  # measured: 28.9 on the 18 photographs of examples/, none of which it was trained on
WORST_FLOOR_DB = 18.0  # measured: 20.4 for the most saturated of them


@pytest.fixture(scope="module")
def prior() -> Components:
    return load_components(PRIOR)


def test_the_folder_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in PRIOR.rglob("*") if path.is_file()) < LIMIT_BYTES
    assert "Photographs" in (PRIOR / "README.md").read_text()


def test_it_is_frozen_and_what_the_preset_says(prior: Components) -> None:
    preset = get_network("tiny")
    assert prior.network == "tiny"
    assert 2 ** (len(prior.vae.config.block_out_channels) - 1) == preset.vae_factor
    assert prior.unet.config.cross_attention_dim == preset.context_dim
    for module in (prior.unet, prior.vae, prior.text_encoder, prior.text_encoder_2):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_photographs_come_back_from_the_autoencoder(prior: Components) -> None:
    crops = [crop(resize_short_side(decode(path.read_bytes()).rgb_HWC, 256), 256) for path in photographs()]
    x_BCHW = rgb_to_model(np.stack(crops))
    with torch.no_grad():
        z_BCHW = prior.vae.encode(x_BCHW).latent_dist.mode()
        y_BCHW = prior.vae.decode(z_BCHW).sample.clamp(-1, 1)
    psnr_B = 10 * torch.log10(4 / (x_BCHW - y_BCHW).square().mean((1, 2, 3)))
    assert psnr_B.mean() > PSNR_FLOOR_DB
    assert psnr_B.min() > WORST_FLOOR_DB
    # the UNet expects latents of unit variance; photographs differ, a factor of two would be another scale
    assert 0.5 < float(z_BCHW.std()) * prior.vae.config.scaling_factor < 2.0


def test_image_to_image_runs_at_half_strength(prior: Components) -> None:
    pipe: Any = prior.img2img()
    pipe.set_progress_bar_config(disable=True)
    rgb_HWC = crop(resize_short_side(decode(photographs(1)[0].read_bytes()).rgb_HWC, 64), 64)

    def draw(prompt: str) -> Any:
        return pipe(prompt=[prompt], negative_prompt=[""], image=model_to_unit(rgb_to_model(rgb_HWC[None])), strength=0.5,
                    num_inference_steps=4, guidance_scale=2.0, generator=[torch.Generator().manual_seed(0)], output_type="np").images

    drawn = [draw(prompt) for prompt in ("a bright sky", "a bright sky", "x")]
    assert drawn[0].shape == (1, 64, 64, 3)
    assert np.isfinite(drawn[0]).all()
    assert np.array_equal(drawn[0], drawn[1]), "the same seed must draw the same picture"
    assert not np.array_equal(drawn[0], drawn[2]), "the words must reach the UNet"


def test_what_is_saved_is_loaded(tmp_path: Path, prior: Components) -> None:
    save_prior(tmp_path, unet=prior.unet, vae=prior.vae, network="tiny", text_seed=0)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(PRIOR / name, tmp_path / name)
    again = load_components(tmp_path)
    for one, other in ((prior.unet, again.unet), (prior.vae, again.vae), (prior.text_encoder_2, again.text_encoder_2)):
        for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(a, b), f"{name} changed on the way"  # the weights were fp16 values already
    assert again.vae.config.scaling_factor == prior.vae.config.scaling_factor


@pytest.mark.parametrize(("variant", "max_shard_size"), [(None, "10GB"), (None, "2MB"), ("fp16", "10GB"), ("fp16", "2MB")])
def test_sdxl_in_diffusers_layout(tmp_path: Path, prior: Components, variant: str | None, max_shard_size: str) -> None:
    texts = [text.half() for text in clip_pair(64, 64)]
    parts = {"unet": prior.unet, "vae": prior.vae}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name, variant=variant, max_shard_size=max_shard_size)
    for name, part in zip(("text_encoder", "text_encoder_2"), texts, strict=True):
        part.save_pretrained(tmp_path / name, variant=variant, max_shard_size=max_shard_size)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(PRIOR / name, tmp_path / name)
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == (max_shard_size == "2MB")
    loaded = load_components(tmp_path)
    pairs = ((prior.unet, loaded.unet), (prior.vae, loaded.vae), (texts[0], loaded.text_encoder), (texts[1], loaded.text_encoder_2))
    for one, other in pairs:
        for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(a.float(), b), name
    assert loaded.network is None


def test_a_folder_that_is_no_prior_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a prior: folder unet, vae, .* is missing"):
        load_components(tmp_path)
    with pytest.raises(ValueError, match=r"no prior at .*sdxl.safetensors: expected a folder, or one file"):
        load_components(tmp_path / "sdxl.safetensors")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("prior.json", "{", r"prior\.json holds Expecting .*, expected \{\"network\": …"),
        ("prior.json", '{"network": "tiny"}', r"prior\.json holds 'text_seed', expected"),
        ("vae/config.json", "{", r"vae/config\.json' is not a valid JSON"),
        ("vae/diffusion_pytorch_model.safetensors", "cut", r"vae/diffusion_pytorch_model\.safetensors"),
    ],
)
def test_a_prior_that_is_damaged_says_where(tmp_path: Path, file: str, text: str, words: str) -> None:
    shutil.copytree(PRIOR, tmp_path / "prior")
    (tmp_path / "prior" / file).write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)prior .* cannot be read: .*{words}.*Copy, download or convert it again, or choose another"):
        load_components(tmp_path / "prior")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    shutil.copytree(PRIOR, tmp_path / "prior")
    weights = tmp_path / "prior" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        load_components(tmp_path / "prior")
