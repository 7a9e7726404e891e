"""Adaptor features, connector outputs and predicted noise against the released code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from supir_model import keys
from supir_model.network import SupirAdaptor, SupirUNet
from supir_model.presets import NetworkPreset
from tests.parity.golden import cases, fill_by_formula, worst

NETWORK = 2e-5  # two fp32 implementations that sum in another order; reached: 1e-5


def preset_of(config: dict[str, Any]) -> NetworkPreset:
    """The network preset of a golden folder."""
    attends = [2**level in config["attention_resolutions"] for level in range(len(config["channel_mult"]))]
    depth = lambda name: tuple(d if a else 0 for d, a in zip(config[name], attends, strict=True))  # noqa: E731
    return NetworkPreset(
        name=config["name"],
        block_out_channels=tuple(config["model_channels"] * m for m in config["channel_mult"]),
        transformer_depth=depth("unet_transformer_depth"),
        trunk_depth=depth("control_transformer_depth"),
        layers_per_block=config["num_res_blocks"],
        head_width=config["num_head_channels"],
        context_dim=config["context_dim"],
        pooled_dim=config["pooled_dim"],
        addition_time_embed_dim=config["addition_time_embed_dim"],
        latent_channels=config["in_channels"],
        vae_block_out_channels=(32, 64, 64, 64),
        vae_scaling_factor=0.13025,
        sample_size_px=64,
    )


def golden_network(folder: Path) -> SupirUNet:
    """The network of a golden folder with its formula weights."""
    preset = preset_of(json.loads((folder / "config.json").read_text()))
    unet, adaptor = preset.build_unet(), SupirAdaptor(preset)
    fill_by_formula(unet, {k: keys.UNET + v for k, v in keys.unet_keys(unet.state_dict(), preset).items()})
    fill_by_formula(adaptor.trunk, {k: keys.TRUNK + v for k, v in keys.unet_keys(adaptor.trunk.state_dict(), preset).items()})
    fill_by_formula(adaptor.connectors, {k: keys.CONNECTORS + k for k in adaptor.connectors.state_dict()})
    return SupirUNet(unet, adaptor)


def listen(modules: nn.ModuleList) -> list[Tensor]:
    """Outputs of the modules, filled by the next forward pass."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)
    for i, module in enumerate(modules):
        module.register_forward_hook(lambda m, inputs, output, i=i: outputs.__setitem__(i, output))
    return outputs


@pytest.mark.parametrize("folder", cases("net_*"), ids=lambda path: path.name)
def test_network(folder: Path) -> None:
    network = golden_network(folder)
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    added = {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]}
    args = (inputs["xt"], inputs["timesteps"], inputs["context"], added, inputs["lq"])
    connector_outputs = listen(network.adaptor.connectors)
    with torch.no_grad():
        features = network.adaptor.trunk(*args)
        eps = {scale: network(*args, control_scale=scale) for scale in (1.0, 0.0, 0.7)}
    for i, feature in enumerate(features):
        assert worst(feature, expected[f"control.{i}"]) < NETWORK, f"control feature {i}"
    for j, output in enumerate(connector_outputs):  # of the last pass, at 0.7
        assert worst(output, expected[f"project_out_scale_0.7.{j}"]) < NETWORK, f"connector {j}"
    for scale, output in eps.items():
        assert worst(output, expected[f"eps_scale_{scale}"]) < NETWORK, f"control scale {scale}"
