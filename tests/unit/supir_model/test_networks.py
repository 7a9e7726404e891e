"""Sizes, wiring, gradients and starting weights of the adaptor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supir_model.connectors import ZeroConv, ZeroCrossAttn, ZeroSFT
from supir_model.network import SupirAdaptor, SupirUNet
from supir_model.presets import NETWORKS, SAMPLINGS, NetworkPreset, get_network, get_sampling
from supir_model.trunk import source_name
from tests.unit.supir_model.conftest import build

COUNTS = json.loads((Path(__file__).parents[2] / "golden" / "counts.json").read_text())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def inputs(preset: NetworkPreset, *, batch: int = 2, height: int = 8, width: int = 12) -> tuple[Any, ...]:
    """x, timestep, context, added conditions, z_lq."""
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    added = {"text_embeds": draw(batch, preset.pooled_dim), "time_ids": torch.full((batch, 6), 128.0)}
    x, z_lq = draw(batch, 4, height, width), draw(batch, 4, height, width)
    return x, torch.tensor([999, 3])[:batch], draw(batch, 5, preset.context_dim), added, z_lq


def plain(unet: Any, x: Tensor, timestep: Tensor, context: Tensor, added: dict[str, Tensor]) -> Tensor:
    out: Tensor = unet(x, timestep, context, added_cond_kwargs=added).sample
    return out


def test_sizes_of_the_released_network() -> None:
    expected = COUNTS["counts"]
    with torch.device("meta"):
        preset = get_network("sdxl_release")
        adaptor, unet, vae = SupirAdaptor(preset), preset.build_unet(), preset.build_vae()
    trunk = adaptor.trunk
    assert parameters(unet) == expected["sdxl_unet"]
    assert parameters(vae.encoder) == expected["vae_denoise_encoder"]
    assert parameters(vae.decoder) == expected["vae_decoder"]
    assert parameters(trunk) == expected["control_model"]
    assert parameters(trunk.time_embedding) == expected["control.time_embed"]
    assert parameters(trunk.add_embedding) == expected["control.label_emb"]
    assert parameters(trunk.conv_in) + parameters(trunk.down_blocks) == expected["control.input_blocks"]
    assert parameters(trunk.mid_block) == expected["control.middle_block"]
    assert parameters(trunk.hint) == expected["control.input_hint_block"]
    assert parameters(adaptor.connectors) == expected["project_modules"]
    assert [parameters(c) for c in adaptor.connectors] == [expected[f"project_modules.{j}"] for j in range(12)]


def test_places_of_the_released_connectors() -> None:
    with torch.device("meta"):
        adaptor = SupirAdaptor(get_network("sdxl_release"))
    assert len(adaptor.places) == len(COUNTS["project_modules"])
    for place, module, expected in zip(adaptor.places, adaptor.connectors, COUNTS["project_modules"], strict=True):
        if expected["type"] == "ZeroSFT":
            assert isinstance(module, ZeroSFT)
            found = (place.control_channels, place.skip_channels, place.decoder_channels)
            assert found == (expected["control_ch"], expected["skip_ch"], expected["decoder_ch"])
        else:
            assert isinstance(module, ZeroCrossAttn)
            found = (place.decoder_channels, place.control_channels, module.attn.heads)
            assert found == (expected["query_ch"], expected["context_ch"], expected["heads"])


def test_size_of_the_papers_trunk() -> None:
    with torch.device("meta"):
        adaptor = SupirAdaptor(get_network("sdxl_paper"))
    assert parameters(adaptor.trunk) == 702_031_040  # depths [1, 1, 5], counted on the released code
    assert parameters(adaptor.connectors) == COUNTS["counts"]["project_modules"]


def test_size_of_the_zero_convolutions_of_table_2c() -> None:
    with torch.device("meta"):
        adaptor = SupirAdaptor(get_network("sdxl_paper_zero_conv"))
    assert parameters(adaptor.trunk) == 702_031_040
    widths = [320] * 4 + [640] * 3 + [1280] * 3  # one a skip, and the middle block's; no cross-attention
    assert [parameters(c) for c in adaptor.connectors] == [w * w + w for w in widths]
    assert {type(c) for c in adaptor.connectors} == {ZeroConv}


@pytest.mark.parametrize("size", [(8, 12), (9, 7)], ids=["even", "odd"])
def test_fresh_zero_convolutions_are_the_plain_prior(tiny: NetworkPreset, size: tuple[int, int]) -> None:
    unet, _, _ = build(tiny)
    network = SupirUNet(unet, SupirAdaptor.from_unet(unet, get_network("tiny_zero_conv")))
    x, timestep, context, added, z_lq = inputs(tiny, height=size[0], width=size[1])
    with torch.no_grad():
        expected = plain(unet, x, timestep, context, added)
        assert torch.equal(network(x, timestep, context, added, z_lq), expected)
        torch.nn.init.ones_(network.adaptor.connectors[0].zero_conv.bias)  # type: ignore[arg-type,union-attr]
        assert torch.equal(network(x, timestep, context, added, z_lq, 0.0), expected)
        assert not torch.equal(network(x, timestep, context, added, z_lq), expected)


def test_zero_convolutions_learn(tiny: NetworkPreset) -> None:
    unet, _, adaptor = build(get_network("tiny_zero_conv"))
    SupirUNet(unet, adaptor)(*inputs(tiny)).square().mean().backward()
    assert [name for name, p in adaptor.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_tiny_prior_stays_small(tiny: NetworkPreset) -> None:
    with torch.device("meta"):
        unet, vae = tiny.build_unet(), tiny.build_vae()
    assert parameters(unet) + parameters(vae) < 8_000_000  # it ships in the repository, in fp16


@pytest.mark.parametrize("size", [(8, 12), (8, 10), (9, 7)], ids=["multiple of 4", "multiple of 2", "odd"])
def test_control_scale_zero_is_the_plain_prior(tiny: NetworkPreset, size: tuple[int, int]) -> None:
    unet, _, adaptor = build(tiny)
    x, timestep, context, added, z_lq = inputs(tiny, height=size[0], width=size[1])
    network = SupirUNet(unet, adaptor)
    with torch.no_grad():
        assert torch.equal(network(x, timestep, context, added, z_lq, 0.0), plain(unet, x, timestep, context, added))
        assert not torch.equal(network(x, timestep, context, added, z_lq), plain(unet, x, timestep, context, added))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_what_is_trained_and_nothing_else(tiny: NetworkPreset, checkpointing: bool) -> None:
    unet, _, adaptor = build(tiny)
    network = SupirUNet(unet, adaptor)
    network.set_gradient_checkpointing(checkpointing)
    network(*inputs(tiny)).square().mean().backward()
    without = [name for name, p in adaptor.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is None and not p.requires_grad for p in unet.parameters())


def test_gradient_checkpointing_changes_no_gradient(tiny: NetworkPreset) -> None:
    gradients = []
    for checkpointing in (False, True):
        unet, _, adaptor = build(tiny)
        network = SupirUNet(unet, adaptor)
        network.set_gradient_checkpointing(checkpointing)
        network(*inputs(tiny)).square().mean().backward()
        gradients.append({name: p.grad for name, p in adaptor.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_only_the_adaptor_is_registered(tiny: NetworkPreset) -> None:
    unet, _, adaptor = build(tiny)
    network = SupirUNet(unet, adaptor)
    assert network.unet is unet
    assert parameters(network) == parameters(adaptor)
    assert all(name.startswith("adaptor.") for name in network.state_dict())


def test_a_fresh_adaptor_is_the_prior_and_zeros(tiny: NetworkPreset) -> None:
    unet, _, _ = build(tiny)
    adaptor = SupirAdaptor.from_unet(unet, tiny)
    x, timestep, context, added, z_lq = inputs(tiny)
    with torch.no_grad():
        assert torch.equal(
            torch.stack([f.mean() for f in adaptor.trunk(x, timestep, context, added, z_lq)]),
            torch.stack([f.mean() for f in adaptor.trunk(x, timestep, context, added, 0 * z_lq)]),
        )  # the hint starts at zero
        control, skip, h = torch.randn(2, 32, 4, 4), torch.randn(2, 32, 4, 4), torch.randn(2, 32, 4, 4)
        sft = adaptor.connectors[0]
        assert torch.equal(sft(control, skip, h, 1.0), sft.param_free_norm(torch.cat([h, skip], dim=1)))


def test_a_trimmed_trunk_takes_evenly_spaced_blocks(tiny: NetworkPreset) -> None:
    deep = dataclasses.replace(tiny, transformer_depth=(0, 2, 6), trunk_depth=(0, 1, 3))
    unet = deep.build_unet()
    adaptor = SupirAdaptor.from_unet(unet, deep)
    head = "down_blocks.2.attentions.1.transformer_blocks"
    assert [source_name(f"{head}.{i}.norm1.weight", adaptor.trunk, unet) for i in range(3)] == [
        f"{head}.{i}.norm1.weight" for i in (0, 2, 4)
    ]
    for ours, theirs in ((0, 0), (1, 2), (2, 4)):
        mine, source = (net.get_submodule(f"{head}.{i}").state_dict() for net, i in ((adaptor.trunk, ours), (unet, theirs)))
        assert all(torch.equal(mine[name], source[name]) for name in source)


def test_a_prior_of_another_network_is_refused(tiny: NetworkPreset) -> None:
    with torch.device("meta"):
        unet = dataclasses.replace(tiny, context_dim=96).build_unet()
        with pytest.raises(ValueError, match=r"'tiny': its cross_attention_dim is 96, expected 128"):
            SupirAdaptor.from_unet(unet, tiny)


def test_widths_that_the_connectors_cannot_have_are_refused(tiny: NetworkPreset) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="multiple of 64, found 96"):
        SupirAdaptor(dataclasses.replace(tiny, block_out_channels=(32, 96, 192)))


def test_presets_know_their_names() -> None:
    assert all(name == preset.name for name, preset in (*NETWORKS.items(), *SAMPLINGS.items()))
    with pytest.raises(ValueError, match="did you mean 'sdxl_paper'"):
        get_network("sdxl-paper")
    with pytest.raises(ValueError, match="did you mean 'release_quality'"):
        get_sampling("release_qualty")
    with pytest.raises(ValueError, match="leaves gaps"):
        dataclasses.replace(get_sampling("tiny"), tile_px=64, tile_stride_px=65)
    with pytest.raises(ValueError, match="steps is 1000, expected 1 to 999"):
        dataclasses.replace(get_sampling("tiny"), steps=1000)


def test_prompts_are_the_released_ones() -> None:
    golden = json.loads((Path(__file__).parents[2] / "golden" / "prompts.json").read_text())
    prompts = get_sampling("release_quality").prompts
    assert prompts.around("A cat.") == "A cat." + golden["p_p_cli"]
    assert prompts.negative == golden["n_p_cli"]
