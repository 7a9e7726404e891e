"""Work of one training step, counted: the step itself runs on fake tensors, which have shapes and no numbers, under torch's counter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from supir_model.presets import NetworkPreset, get_network
from training.memory import TOKENS, build_fake_step
from training.recipes import AdaptorConfig, RunConfig

SDXL_TEXT = (  # SDXL's two text encoders: CLIP ViT-L/14 and OpenCLIP ViT-bigG/14
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280},
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs a sample, 2 a multiply-add: encoding without gradients, the text, the network forward and backward, and what is recomputed."""

    encoding: float
    text: float
    forward: float
    backward: float
    recomputed: float = 0.0

    @property
    def useful(self) -> float:
        """Without what is recomputed: what a share of the nominal FLOP/s (MFU) is measured by."""
        return self.encoding + self.text + self.forward + self.backward

    @property
    def total(self) -> float:
        return self.useful + self.recomputed


def count(config: RunConfig) -> Work:
    """Count one sample. Attention is counted as its matrix products; norms, activations and the optimizer are not."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from supir_model.schedule import sdxl_schedule

    sdxl_schedule()  # made once per process, so not here inside
    preset = get_network(config.network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, _, batch = build_fake_step(config, preset, 1)
        encoding = _counted(lambda: _encode(preset, config.batch.crop_px)) if isinstance(config, AdaptorConfig) else 0.0
        loss: list[Any] = []
        forward = _counted(lambda: loss.append(step(batch)[0]))
        backward = _counted(lambda: loss[0].backward())
        plain = _backward(without_recomputation(config), preset) if config.compute.activation_checkpointing else backward
        text = _counted(_text) if isinstance(config, AdaptorConfig) and config.network.startswith("sdxl") else 0.0
    return Work(encoding=encoding, text=text, forward=forward - encoding, backward=plain, recomputed=backward - plain)


def without_recomputation(config: RunConfig) -> RunConfig:
    """The same training that keeps its activations."""
    return replace(config, compute=replace(config.compute, activation_checkpointing=False))


def _backward(config: RunConfig, preset: NetworkPreset) -> float:
    step, _, batch = build_fake_step(config, preset, 1)
    loss: list[Any] = []
    _counted(lambda: loss.append(step(batch)[0]))  # by the same kernels as it is counted
    return _counted(loss[0].backward)


def _counted(work: Any) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter does not know a CPU's fused attention
        work()
    return float(counter.get_total_flops())


def _encode(preset: NetworkPreset, crop_px: int) -> None:
    """Ground truth and degraded picture, as stage 2 encodes them."""
    import torch

    from supir_model.encoder import encode_mode

    vae = preset.build_vae()
    with torch.no_grad():
        for _ in range(2):
            encode_mode(vae, vae.encoder, torch.empty(1, 3, crop_px, crop_px))


def _text() -> None:
    import torch

    with torch.no_grad():
        for encoder in sdxl_text_encoders():
            encoder(torch.zeros(1, TOKENS, dtype=torch.long))


def sdxl_text_encoders() -> list[Any]:
    """SDXL's text encoders with random weights, on the current default device; without eager initialisation on fake or meta tensors."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, second = (CLIPTextConfig(**dict[str, Any](sizes)) for sizes in SDXL_TEXT)
    return [CLIPTextModel(first).eval(), CLIPTextModelWithProjection(second).eval()]
