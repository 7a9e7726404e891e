"""The conditions of one denoising call, and how SDXL embeds image sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the network sees beside the noisy latent.

    `context_BND` text tokens; `pooled_BD` pooled text; `time_ids_B6` original (h, w), crop (top, left), target (h, w) in
    pixels; `z_lq_BCHW` the LQ latent, scaled.
    """

    context_BND: Tensor
    pooled_BD: Tensor
    time_ids_B6: Tensor
    z_lq_BCHW: Tensor

    def __post_init__(self) -> None:
        sizes = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"conditions of different batch sizes: {sizes}")

    def __len__(self) -> int:
        return len(self.context_BND)

    @property
    def added(self) -> dict[str, Tensor]:
        """Pooled text and sizes, as diffusers names them."""
        return {"text_embeds": self.pooled_BD, "time_ids": self.time_ids_B6}

    @classmethod
    def cat(cls, *parts: Self) -> Self:
        """The conditions of several batches as those of one."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def crop(self, top: int, left: int, height: int, width: int) -> Self:
        """The same conditions for a window of the latent. Sizes stay those of the whole image (released code)."""
        window = self.z_lq_BCHW[:, :, top : top + height, left : left + width]
        return type(self)(
            context_BND=self.context_BND, pooled_BD=self.pooled_BD, time_ids_B6=self.time_ids_B6, z_lq_BCHW=window
        )


def size_time_ids(batch: int, size_px: int, device: torch.device | str = "cpu") -> Tensor:
    """The size condition of SDXL, [batch, 6]: original = target = (size, size), crop (0, 0), as released SUPIR always sets."""
    return torch.tensor([[size_px, size_px, 0, 0, size_px, size_px]], dtype=torch.float32, device=device).repeat(batch, 1)
