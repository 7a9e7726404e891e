"""Memory of one worker, counted: the networks and one forward pass of the step on fake tensors, which have shapes and no numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supir_model.presets import NetworkPreset, get_network
from training.recipes import AdaptorConfig, Arithmetic, ComputeOptions, EncoderConfig, EngineOptions, RunConfig

if TYPE_CHECKING:
    import torch

SDXL_TEXT_PARAMETERS = 817_720_320  # counted: CLIP-L (123 M) and OpenCLIP bigG (695 M), see training/flops.py
TOKENS = 77
REDUCE_BUCKET = 500_000_000  # DeepSpeed's default: numbers of the buffer in which it gathers gradients before it reduces them


def estimate(config: RunConfig, cut: Arithmetic) -> dict[str, float]:
    """Bytes by part: frozen weights, trained weights, gradients, Adam's moments, DeepSpeed's buckets, moving average, activations."""
    trained, frozen, kept = _networks(replace(config, engine=EngineOptions()), cut.micro_batch)
    sharded = config.engine.kind == "zero"
    share = cut.world if sharded else 1
    gradient_share = cut.world if sharded and config.engine.zero_stage >= 2 else 1
    moments = 0 if config.engine.offload_optimizer else 2 * 4 * trained / share
    master = 4 * trained / share if sharded and not config.engine.offload_optimizer else 0
    return {
        "frozen": frozen * (2 if config.precision == "bf16" else 4),
        "trained": 4 * trained + master,
        "gradients": 4 * trained / gradient_share,
        "moments": moments,
        "buckets": 4 * REDUCE_BUCKET if sharded and config.launch.gpus_per_worker else 0,  # on a CPU its pages are never touched
        "average": 4 * trained / share if config.optimizer.ema_half_life_images else 0,
        "activations": kept,
    }


@lru_cache(maxsize=16)
def _networks(config: RunConfig, micro_batch: int) -> tuple[int, int, float]:
    """Numbers that are trained, numbers that are frozen, bytes of activations."""
    from diffusers.utils import logging
    from torch._subclasses.fake_tensor import FakeTensorMode

    from supir_model.schedule import sdxl_schedule

    logging.get_logger("diffusers.models.modeling_utils").setLevel("ERROR")  # warns of every cast
    sdxl_schedule()  # made once per process, so not here inside
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, frozen, batch = build_fake_step(config, get_network(config.network), micro_batch)
        kept = recomputed_activations(step, batch) if config.compute.activation_checkpointing else activations(step, batch)
    return sum(p.numel() for p in step.parameters() if p.requires_grad), frozen, kept


def peak(parts: dict[str, float], config: RunConfig, cut: Arithmetic) -> float:
    """The most that is held at once. Where each update has one pass, gradients come while activations go; else both stand together."""
    alone = config.engine.kind == "plain" and cut.accumulation == 1
    return sum(parts.values()) - (min(parts["gradients"], parts["activations"]) if alone else 0.0)


def activations(step: torch.nn.Module, batch: dict[str, Any]) -> float:
    """Bytes that one forward pass keeps for the backward pass: every saved tensor once, the weights left out."""
    import torch

    buffers = {b.untyped_storage()._cdata for module in step._frozen if module is not None for b in module.buffers()}  # type: ignore
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.untyped_storage()._cdata not in buffers:
            kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no address is counted for two
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(batch)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def recomputed_activations(step: torch.nn.Module, batch: dict[str, Any]) -> float:
    """Bytes that are alive at once, at the most, in a forward and backward pass that recomputes: weights and their gradients left out.

    What recomputation keeps is held by closures, which no hook sees, so every storage is followed from its birth to its death.
    """
    from training.liveness import Alive

    for p in step.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))  # counted apart
    with Alive() as alive:
        loss, _ = step(batch)
        loss.backward()
    return float(alive.most)


def build_fake_step(config: RunConfig, preset: NetworkPreset, batch: int) -> tuple[torch.nn.Module, int, dict[str, Any]]:
    """The step module with its networks, the number of frozen parameters, and a batch; under FakeTensorMode they take no memory."""
    import torch

    from supir_model.network import SupirAdaptor
    from supir_model.perceptual import unfilled_perceptual
    from training.computing import prepare
    from training.step import AdaptorStep, EncoderStep

    recompute = ComputeOptions(activation_checkpointing=config.compute.activation_checkpointing)
    half = config.precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    vae = _frozen(preset.build_vae(), dtype)
    crop, side = config.batch.crop_px, config.batch.crop_px // preset.vae_factor
    x_BCHW = torch.empty(batch, 3, crop, crop)
    pair: dict[str, Any] = {"x_gt_BCHW": x_BCHW, "x_lq_BCHW": x_BCHW}
    if isinstance(config, EncoderConfig):
        perceptual = unfilled_perceptual() if config.perceptual_weight else None
        step = EncoderStep(
            vae,
            preset.build_vae().encoder,
            loss=config.loss,
            latent_weight=config.latent_weight,
            bf16=half,
            kl_weight=config.kl_weight,
            perceptual_weight=config.perceptual_weight,
            perceptual=perceptual,
        )
        prepare(step, recompute)
        fp32 = sum(b.numel() for b in perceptual.buffers()) if perceptual else 0  # whatever the precision of the others
        return step, _count(vae) + fp32 * (2 if half else 1), pair
    assert isinstance(config, AdaptorConfig), f"no stage for a {type(config).__name__}"
    unet = _frozen(preset.build_unet(), dtype)
    text = (torch.empty(batch, TOKENS, preset.context_dim, dtype=dtype), torch.empty(batch, preset.pooled_dim, dtype=dtype))
    adaptor = SupirAdaptor(preset)
    encoder = _frozen(preset.build_vae().encoder, dtype)
    stage2 = AdaptorStep(
        unet=unet,
        adaptor=adaptor,
        vae=vae,
        encoder=encoder,
        encode_text=lambda _: text,
        conditioning_size_px=config.conditioning_size_px,
        bf16=half,
    )
    prepare(stage2, recompute)
    noise_BCHW = torch.empty(batch, preset.latent_channels, side, side)
    timestep_B = torch.zeros(batch, dtype=torch.long)
    text_parameters = SDXL_TEXT_PARAMETERS if preset.name.startswith("sdxl") else 0
    frozen = _count(unet) + _count(vae) + _count(encoder) + text_parameters
    return stage2, frozen, {**pair, "prompts": [], "timestep_B": timestep_B, "noise_BCHW": noise_BCHW}


def _frozen(module: Any, dtype: torch.dtype) -> Any:
    """Parameters of a type, without gradients; `Module.to` cannot do it with fake tensors."""
    import torch

    for inner in module.modules():
        for name, p in inner.named_parameters(recurse=False):
            setattr(inner, name, torch.nn.Parameter(p.detach().to(dtype), requires_grad=False))
    return module


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
