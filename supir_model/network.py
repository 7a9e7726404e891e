"""The adaptor, and an unmodified SDXL UNet run under its control (Sec. 3.1; Fig. 2)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from supir_model.connectors import places
from supir_model.presets import NetworkPreset, UNet
from supir_model.trunk import AddedConditions, Trunk, embed, recompute, run_encoder


class SupirAdaptor(nn.Module):
    """Everything that stage 2 trains: the trunk and the connectors."""

    def __init__(self, preset: NetworkPreset) -> None:
        super().__init__()
        self.preset = preset
        self.trunk = Trunk(preset)
        self.places = places(preset)
        self.connectors = nn.ModuleList(place.build() for place in self.places)
        self._join_at = {place.skip: i for i, place in enumerate(self.places) if place.kind != "cross"}
        self._cross_at = {place.skip: i for i, place in enumerate(self.places) if place.kind == "cross"}

    @classmethod
    def from_unet(cls, unet: UNet, preset: NetworkPreset) -> Self:
        """A fresh adaptor whose trunk starts from the encoder half of `unet`. ValueError if `unet` has other widths."""
        check_same_network(unet, preset)
        adaptor = cls(preset).to(unet.dtype)
        adaptor.trunk.copy_encoder_half(unet)
        return adaptor

    def join(self, skip: int) -> nn.Module:
        """The ZeroSFT, or zero convolution, of a skip; the middle block's at the number of skips."""
        return self.connectors[self._join_at[skip]]

    def cross(self, skip: int) -> nn.Module | None:
        """The ZeroCrossAttn of a skip, in front of the upsampler that follows it; none beside zero convolutions."""
        return self.connectors[self._cross_at[skip]] if skip in self._cross_at else None

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the trunk's residual blocks in the backward pass."""
        self.trunk.set_gradient_checkpointing(enabled)


class SupirUNet(nn.Module):
    """eps(x, t; c, z_lq): the frozen prior steered by the adaptor.

    Only the adaptor is a registered submodule: `parameters()`, `state_dict()`, `.to()` and an engine that shards see nothing
    of the prior, which is frozen here. The prior's encoder half runs without autograd; through its decoder gradients flow to
    the adaptor.
    """

    def __init__(self, unet: UNet, adaptor: SupirAdaptor) -> None:
        super().__init__()
        check_same_network(unet, adaptor.preset)
        self.adaptor = adaptor
        self.gradient_checkpointing = False
        self._prior = (unet.requires_grad_(False).eval(),)  # in a tuple: not a submodule

    @property
    def unet(self) -> UNet:
        """The frozen prior."""
        return self._prior[0]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the trunk's residual blocks and the decoder's steps in the backward pass."""
        self.adaptor.set_gradient_checkpointing(enabled)
        self.gradient_checkpointing = enabled

    def forward(
        self,
        x_BCHW: Tensor,
        timestep_B: Tensor,
        context_BND: Tensor,
        added: AddedConditions,
        z_lq_BCHW: Tensor,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predicted noise [B, C, H, W].

        `x_BCHW` is the noisy latent scaled by c_in, `timestep_B` in 0..999, `z_lq_BCHW` the scaled LQ latent. `control_scale`
        0 gives the plain prior bit for bit, and skips the adaptor.
        """
        controls = self.adaptor.trunk(x_BCHW, timestep_B, context_BND, added, z_lq_BCHW) if control_scale else None
        with torch.no_grad():
            embedding_BD = embed(self.unet, x_BCHW, timestep_B, added)
            h, skips = run_encoder(self.unet, self.unet.conv_in(x_BCHW), embedding_BD, context_BND)
        controls = controls or [*skips, h]  # at control scale 0 a connector returns before it reads its control
        h = self.adaptor.join(len(skips))(controls[-1], h, None, control_scale)
        for block in self.unet.up_blocks:
            for layer in range(len(block.resnets)):
                skip = len(skips) - 1
                h = self._maybe_recompute(
                    self._decode, block, layer, skip, controls[skip], skips.pop(), h, embedding_BD, context_BND, control_scale
                )
            if block.upsamplers is not None:
                cross = self.adaptor.cross(skip)
                h = cross(controls[skip], h, control_scale) if cross is not None else h
                h = block.upsamplers[0](h, skips[-1].shape[2:])
        out: Tensor = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h)))
        return out

    def _decode(
        self,
        block: Any,
        layer: int,
        skip: int,
        control_BCHW: Tensor,
        skip_BCHW: Tensor,
        h_BCHW: Tensor,
        embedding_BD: Tensor,
        context_BND: Tensor,
        control_scale: float,
    ) -> Tensor:
        """One residual block of the decoder (and its transformer), its input made by the connector of `skip`."""
        h = block.resnets[layer](self.adaptor.join(skip)(control_BCHW, skip_BCHW, h_BCHW, control_scale), embedding_BD)
        if not hasattr(block, "attentions"):
            return h  # type: ignore[no-any-return]
        return block.attentions[layer](h, encoder_hidden_states=context_BND, return_dict=False)[0]  # type: ignore[no-any-return]

    def _maybe_recompute(self, function: Any, *inputs: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recompute(function, *inputs)
        return function(*inputs)


def check_same_network(unet: UNet, preset: NetworkPreset) -> None:
    """ValueError that names the first difference if `unet` is not the prior that `preset` describes."""
    expected = preset.unet_config()
    for key in set(expected) - {"sample_size"}:
        found = unet.config[key]
        if _plain(found) != _plain(expected[key]):
            raise ValueError(
                f"the prior is not that of network {preset.name!r}: its {key} is {found}, expected {expected[key]}. "
                "Choose the network preset that the prior was made with, or another prior"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
