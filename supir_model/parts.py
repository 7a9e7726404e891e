"""Encoder and adaptor as diffusers models: the same modules and names of tensors, with a configuration that is stored beside them.

diffusers saves and loads the parts of a pipeline by themselves; for that a part has to be a `ModelMixin` that can be built from
its `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from supir_model.encoder import DegradationRobustEncoder
from supir_model.network import SupirAdaptor
from supir_model.presets import Vae, get_network


class StoredEncoder(DegradationRobustEncoder, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The degradation-robust encoder, of the shape of an AutoencoderKL's encoder."""

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        down_block_types: Sequence[str],
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        act_fn: str,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=tuple(down_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            mid_block_add_attention=mid_block_add_attention,
        )

    @classmethod
    def of(cls, encoder: DegradationRobustEncoder, vae: Vae) -> Self:
        """`encoder`, which belongs to `vae`; its tensors are shared, not copied."""
        names = (
            "in_channels", "latent_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups",
            "act_fn", "mid_block_add_attention",
        )  # fmt: skip
        made: Self = _sharing(cls, encoder, {name: vae.config[name] for name in names})
        return made


class StoredAdaptor(SupirAdaptor, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The adaptor; `network` names its preset."""

    @register_to_config
    def __init__(self, network: str) -> None:
        super().__init__(get_network(network))

    @classmethod
    def of(cls, adaptor: SupirAdaptor) -> Self:
        """`adaptor`; its tensors are shared, not copied."""
        made: Self = _sharing(cls, adaptor, {"network": adaptor.preset.name})
        return made


def _sharing(cls: Any, module: nn.Module, config: dict[str, Any]) -> Any:
    if isinstance(module, cls):
        return module
    with torch.device("meta"):
        stored = cls(**config)
    stored.load_state_dict(module.state_dict(), assign=True)
    return stored.eval().requires_grad_(False)
