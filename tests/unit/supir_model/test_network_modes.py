"""How the network may be run: memory in training, precisions, layouts, attention kernels, compilation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from supir_model.network import SupirUNet
from supir_model.presets import NetworkPreset
from supir_model.trunk import embed, run_encoder
from tests.unit.supir_model.conftest import build
from tests.unit.supir_model.test_networks import inputs

BF16_BAND = 0.03  # relative, root of the mean square: 8 bits a rounding (2^-9), about 60 layers deep; reached: 0.011


@pytest.fixture
def network(tiny: NetworkPreset) -> SupirUNet:
    unet, _, adaptor = build(tiny)
    return SupirUNet(unet, adaptor)


class Saved:
    """Bytes that autograd keeps for the backward pass, beside weights, each storage once, by where the forward pass is."""

    def __init__(self, network: SupirUNet, parts: dict[str, list[nn.Module]] | None = None) -> None:
        parts = parts or {}
        self.place, self.bytes_by_place = "elsewhere", dict.fromkeys((*parts, "elsewhere"), 0)
        self._seen = {p.untyped_storage().data_ptr() for net in (network, network.unet) for p in net.parameters()}
        self._kept: list[Tensor] = []  # so that no address is used twice
        self._handles = []
        for name, modules in parts.items():
            for module in modules:
                self._handles += [module.register_forward_pre_hook(self._enter(name)), module.register_forward_hook(self._leave)]

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: setattr(self, "place", name)

    def _leave(self, *_: object) -> None:
        self.place = "elsewhere"

    def _pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self._kept.append(tensor)
            self.bytes_by_place[self.place] += tensor.untyped_storage().nbytes()
        return tensor

    def measure(self, forward: Callable[[], Any]) -> dict[str, int]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            forward()
        for handle in self._handles:
            handle.remove()
        return self.bytes_by_place

    @property
    def total(self) -> int:
        return sum(self.bytes_by_place.values())


def encoder_half(unet: Any) -> list[nn.Module]:
    return [unet.conv_in, unet.time_embedding, unet.add_embedding, *unet.down_blocks, unet.mid_block]


def test_the_frozen_encoder_half_keeps_nothing_for_the_backward_pass(tiny: NetworkPreset, network: SupirUNet) -> None:
    arguments, unet = inputs(tiny), network.unet
    decoder = [resnet for block in unet.up_blocks for resnet in block.resnets]
    saved = Saved(network, {"prior": encoder_half(unet), "trunk": [network.adaptor.trunk], "decoder": decoder})
    found = saved.measure(lambda: network(*arguments))
    assert found["prior"] == 0
    assert found["trunk"] > 0
    assert found["decoder"] > 0  # through it gradients flow to the adaptor

    x, timestep, context, added, _ = arguments
    x.requires_grad_()  # the same half with autograd would keep about as much as the trunk
    with_autograd = Saved(network)
    with_autograd.measure(lambda: run_encoder(unet, unet.conv_in(x), embed(unet, x, timestep, added), context))
    assert with_autograd.total > found["trunk"] / 2


def test_gradient_checkpointing_saves_memory(tiny: NetworkPreset, network: SupirUNet) -> None:
    arguments, totals = inputs(tiny), []
    for enabled in (False, True):
        network.set_gradient_checkpointing(enabled)
        saved = Saved(network)
        saved.measure(lambda: network(*arguments))
        totals.append(saved.total)
    assert totals[1] < totals[0] / 2  # measured: a third; what is left are the inputs of the recomputed parts


def test_bf16_agrees_with_fp32(tiny: NetworkPreset, network: SupirUNet) -> None:
    x, timestep, context, added, z_lq = inputs(tiny)
    with torch.no_grad():
        expected = network(x, timestep, context, added, z_lq)
        unet, _, adaptor = build(tiny)
        half = SupirUNet(unet.bfloat16(), adaptor.bfloat16())
        pooled = {**added, "text_embeds": added["text_embeds"].bfloat16()}
        found = half(x.bfloat16(), timestep, context.bfloat16(), pooled, z_lq.bfloat16())
    assert found.dtype == torch.bfloat16
    assert math.sqrt((found.float() - expected).square().mean() / expected.square().mean()) < BF16_BAND
    assert not torch.equal(found.float(), expected)


def test_channels_last_agrees(tiny: NetworkPreset, network: SupirUNet) -> None:
    x, timestep, context, added, z_lq = inputs(tiny)
    with torch.no_grad():
        expected = network(x, timestep, context, added, z_lq)
        unet, _, adaptor = build(tiny)
        last: Any = torch.channels_last
        other = SupirUNet(unet.to(memory_format=last), adaptor.to(memory_format=last))
        found = other(x.contiguous(memory_format=last), timestep, context, added, z_lq.contiguous(memory_format=last))
    assert found.is_contiguous(memory_format=last)  # no layer falls back
    assert torch.allclose(found, expected, atol=2e-5)  # other fp32 kernels; reached: 2e-6


def test_every_attention_is_scaled_dot_product_attention(network: SupirUNet) -> None:
    found = [m for net in (network.unet, network.adaptor) for m in net.modules() if hasattr(m, "processor")]
    assert len(found) > 10
    assert {type(module.processor) for module in found} == {AttnProcessor2_0}


def test_the_network_compiles_as_one_graph(tiny: NetworkPreset, network: SupirUNet) -> None:
    """fullgraph: a graph break anywhere, trunk, connectors or decoder, is an error."""
    torch.compiler.reset()
    arguments = inputs(tiny)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*arguments), network(*arguments))
    torch.compiler.reset()
