"""Fixed pictures restored while stage 2 trains: the curve of a loss does not say when pictures begin to drift."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from supir_model import images
from supir_model.presets import SamplingPreset, get_sampling
from supir_model.restore import restore
from supir_model.weights import Restorer
from training.step import compute

if TYPE_CHECKING:
    from training.batches import Sample
    from training.recipes import AdaptorConfig


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """The networks of stage 2 as a restorer. The adaptor is the one in training, and is left in the mode in which it was."""

    restorer: Restorer
    config: AdaptorConfig

    @property
    def settings(self) -> SamplingPreset:
        """The tiny network has settings of its own; others take the paper's (tau_r 4), in fewer steps."""
        config = self.config
        preset = get_sampling("tiny" if config.network.startswith("tiny") else "paper")
        return replace(preset, steps=config.validation.restore_steps, conditioning_size_px=config.conditioning_size_px)

    def restored(self, samples: list[Sample]) -> np.ndarray[Any, Any]:
        """uint8 BHWC; the same pictures, texts and seeds whenever it is asked."""
        settings, adaptor, device = self.settings, self.restorer.adaptor, self.restorer.device
        assert adaptor is not None, "stage 2 has an adaptor"
        mode = adaptor.training
        x_lq_BCHW = images.rgb_to_model([sample.lq_HWC for sample in samples]).to(device)
        negatives, seeds = [settings.prompts.negative] * len(samples), [sample.noise_seed for sample in samples]
        with torch.no_grad(), compute(x_lq_BCHW, self.config.precision == "bf16"):
            found = restore(self.restorer, x_lq_BCHW, [s.prompt for s in samples], negatives, settings, seeds)
        adaptor.train(mode)
        return images.model_to_rgb(found.x_BCHW)
