"""An SDXL base in one file: a small one read back exactly, the full-size layout by names and shapes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supir_model import keys, single_file
from supir_model.checkpoint_file import open_file
from supir_model.presets import NetworkPreset, get_network
from supir_model.prior import TOKENIZER, load_components
from supir_model.text import encode_prompts
from supir_model.weights import load_restorer
from tests.checkpoints import clip_pair, save_tensors, single_file_tensors, write_sparse
from tests.helpers import ROOT
from tests.unit.supir_model.conftest import build

SDXL_TENSORS = 2515  # in sd_xl_base_1.0.safetensors
SURPLUS = {"alphas_cumprod": torch.zeros(1000), "denoiser.sigmas": torch.zeros(1000), "first_stage_model.loss.logvar": torch.zeros(1)}


@pytest.fixture(scope="module")
def parts(tiny: NetworkPreset) -> tuple[Any, Any, Any, Any]:
    unet, vae, _ = build(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = clip_pair(tiny.context_dim // 2, tiny.pooled_dim)
    return unet, vae, first, second


@pytest.fixture(scope="module")
def base(tiny: NetworkPreset, parts: tuple[Any, Any, Any, Any]) -> dict[str, Tensor]:
    return single_file_tensors(tiny, *parts) | SURPLUS


@pytest.fixture(scope="module")
def path(base: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_tensors(path, base)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_it_is_read_back_exactly(path: Path, parts: tuple[Any, Any, Any, Any]) -> None:
    loaded = load_components(path)
    read = (loaded.unet, loaded.vae, loaded.text_encoder, loaded.text_encoder_2)
    assert all(same(mine, theirs) for mine, theirs in zip(parts, read, strict=True))
    assert not any(p.requires_grad or p.is_meta for module in read for p in module.parameters())
    ids = loaded.tokenizer_2(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert ids[0, :4].tolist() == [49406, 320, 2368, 49407]
    assert ids[0, 4:].unique().tolist() == [0]  # SDXL's second tokenizer pads with "!"
    for mine, theirs in zip(parts[2:], read[2:], strict=True):  # activations, heads, positions, pooling
        assert torch.equal(mine(ids)[0], theirs(ids)[0])
        assert torch.equal(mine(ids, output_hidden_states=True).hidden_states[-2], theirs(ids, output_hidden_states=True).hidden_states[-2])
    assert encode_prompts(loaded, ["a cat"]).context_BND.shape == (1, 77, 128)


def test_a_base_in_half_precision_keeps_its_autoencoder_in_fp32(path: Path, base: dict[str, Tensor], tmp_path: Path) -> None:
    save_tensors(tmp_path / "half.safetensors", base, torch.float16)
    restorer = load_restorer(tmp_path / "half.safetensors", dtype=torch.float16)
    parts = restorer.components
    assert [m.dtype for m in (parts.unet, parts.text_encoder, parts.text_encoder_2, parts.vae)] == [torch.float16] * 3 + [torch.float32]
    assert torch.equal(parts.vae.state_dict()["decoder.conv_in.weight"].half(), base[f"{keys.VAE}decoder.conv_in.weight"].half())
    assert load_components(path, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_a_ckpt_and_a_projection_as_converters_leave_it(base: dict[str, Tensor], parts: tuple[Any, Any, Any, Any], tmp_path: Path) -> None:
    changed = dict(base)
    changed[f"{keys.OPEN_CLIP}text_projection.weight"] = changed.pop(f"{keys.OPEN_CLIP}text_projection").T
    torch.save({"state_dict": changed, "global_step": 1}, tmp_path / "base.ckpt")
    assert same(load_components(tmp_path / "base.ckpt").text_encoder_2, parts[3])


def test_the_full_size_layout(tmp_path: Path) -> None:
    preset = get_network("sdxl_release")
    with torch.device("meta"):
        unet, vae = preset.build_unet(), preset.build_vae()
        first, second = clip_pair(768, 1280, 12)[0], clip_pair(1280, 1280, 32)[1]
        for text, ratio in ((first, 4), (second, 4)):
            for layer in getattr(text, "text_model", text).encoder.layers:
                width = layer.mlp.fc2.out_features
                layer.mlp.fc1, layer.mlp.fc2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
    tensors = single_file_tensors(preset, unet, vae, first, second)
    assert len(tensors) == SDXL_TENSORS
    write_sparse(tmp_path / "sdxl.safetensors", {name: tensor.shape for name, tensor in tensors.items()})
    plan = single_file.plan(open_file(tmp_path / "sdxl.safetensors"))
    parts = (plan.unet, plan.vae, plan.text_encoder, plan.text_encoder_2)
    assert [sum(p.numel() for p in part.module.parameters()) for part in parts] == [2567463684, 83653863, 123060480, 694659840]
    config = plan.text_encoder_2.module.config
    assert (config.num_attention_heads, config.num_hidden_layers, config.hidden_act, config.projection_dim) == (20, 32, "gelu", 1280)
    config = plan.text_encoder.module.config
    assert (config.num_attention_heads, config.num_hidden_layers, config.hidden_act) == (12, 12, "quick_gelu")


def test_the_vocabulary_is_clips() -> None:
    for name in ("vocab.json", "merges.txt"):
        assert (TOKENIZER / name).read_bytes() == (ROOT / "priors" / "tiny" / "tokenizer" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_pred": torch.zeros(0)}, r"a base that predicts v .* needs one that predicts the noise"),
        ({f"{keys.UNET}input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)},
         r"does not hold SDXL's UNet: 1180 tensors missing .*; 499 tensors of another shape .* It seems to be an SDXL base"),
        ({f"{keys.UNET}input_blocks.0.0.weight": torch.zeros(48, 4, 3, 3)},
         r"a UNet that is 48 channels wide, expected one of \[32, 320\]"),
        ({f"{keys.UNET}input_blocks.9.0.in_layers.0.bias": torch.zeros(1)}, r"1 tensor surplus \(model.diffusion_model.input_blocks.9"),
        ({f"{keys.VAE}encoder.conv_in.weight": torch.zeros(1, dtype=torch.int8)},
         r"SDXL's autoencoder: 1 tensor of another shape .*; 1 tensor of a precision that is not read \(quantised\?\)"),
    ],
)  # fmt: skip
def test_other_bases_are_refused_in_words(base: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    save_tensors(tmp_path / "other.safetensors", base | change)
    with pytest.raises(ValueError, match=message):
        load_components(tmp_path / "other.safetensors")


def test_a_base_without_a_part_is_refused_in_words(base: dict[str, Tensor], tmp_path: Path) -> None:
    save_tensors(tmp_path / "unet.safetensors", {name: tensor for name, tensor in base.items() if name.startswith(keys.UNET)})
    with pytest.raises(ValueError, match=r"no SDXL base .* has no conditioner.* a UNet alone .*: the prior is a whole SDXL base"):
        load_components(tmp_path / "unet.safetensors")
    save_tensors(tmp_path / "no_vae.safetensors", {name: tensor for name, tensor in base.items() if not name.startswith(keys.VAE)})
    with pytest.raises(ValueError, match=r"does not hold SDXL's autoencoder: \d+ tensors missing \(first_stage_model"):
        load_components(tmp_path / "no_vae.safetensors")
