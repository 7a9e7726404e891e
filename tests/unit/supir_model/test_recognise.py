"""What kind of file is named, and what to do with it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import torch

from supir_model.network import SupirAdaptor
from supir_model.presets import NetworkPreset, get_network
from supir_model.recognise import UNKNOWN, recognise
from supir_model.weights import official_tensors
from tests.helpers import ROOT


def meta(*names: str, shape: tuple[int, ...] = (1,)) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name in names}


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("lora_unet_mid_block_attentions_0.lora_down.weight", "lora_unet_mid_block_attentions_0.alpha"), "a LoRA"),
        (("unet.mid_block.attentions.0.to_q.lora_A.weight",), "a LoRA"),
        (("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.text_model.x"), "an SD 1.x model"),
        (("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.model.ln_final.bias"), "an SD 2.x model"),
        (("model.diffusion_model.x", "conditioner.embedders.0.model.ln_final.bias"), "the SDXL refiner"),
        (("model.diffusion_model.x", "conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"), "an SDXL base"),
        (("first_stage_model.encoder.down.0.block.0.conv1.weight",), "an autoencoder in the original layout"),
        (("encoder.down.0.block.0.conv1.weight", "decoder.conv_in.bias"), "an autoencoder in the original layout"),
        (("encoder.down_blocks.0.x", "decoder.up_blocks.0.x", "quant_conv.bias"), "an autoencoder in diffusers' layout"),
        (("first_stage_model.denoise_encoder.conv_in.bias",), "a degradation-robust encoder"),
        (("controlnet_cond_embedding.conv_in.bias", "time_embedding.linear_1.bias"), "a ControlNet"),
        (("double_blocks.0.img_attn.qkv.weight",), "a Flux model"),
        (("trunk.conv_in.weight", "connectors.0.zero_conv.bias"), "an adaptor of ours"),
        (("text_model.embeddings.token_embedding.weight",), "a text encoder"),
        (("something.else",), UNKNOWN.name),
    ],
)
def test_kinds(names: tuple[str, ...], kind: str) -> None:
    assert recognise(meta(*names)).name.startswith(kind)
    assert recognise(meta(*names)).advice


def test_the_network_of_a_supir_checkpoint(tiny: NetworkPreset) -> None:
    shapes: dict[str, Any] = json.loads(gzip.decompress((ROOT / "tests/golden/supir_only_shapes.json.gz").read_bytes()))
    full = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert recognise(full).name == "a SUPIR checkpoint for network 'sdxl_release'"
    for name in ("tiny", "sdxl_paper"):
        with torch.device("meta"):
            adaptor = SupirAdaptor(get_network(name))
        assert recognise(official_tensors(adaptor=adaptor, device="meta")).name == f"a SUPIR checkpoint for network {name!r}"
    assert recognise(meta("model.control_model.x")).name == "a SUPIR checkpoint of no known network"


def test_the_family_of_a_unet() -> None:
    names = ("time_embedding.linear_1.bias", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    assert recognise(meta(*names, shape=(320, 768))).name == "a UNet in diffusers' layout of SD 1.x"
    assert recognise(meta(*names, shape=(640, 2048))).name == "a UNet in diffusers' layout of SDXL"
