"""How a step is computed: recomputation, memory layout and compilation, set on the networks of a step module."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch

from supir_model.trunk import recompute

if TYPE_CHECKING:
    from training.recipes import ComputeOptions
    from training.step import AdaptorStep, EncoderStep

BACKEND = "inductor"
CURE = "or --set compute.compile=false"
COMPILED_BAND = {False: 1e-3, True: 0.05}  # choice, fp32 and bf16: fused kernels round elsewhere; a wrong one is off by its own size


def prepare(step: EncoderStep | AdaptorStep, options: ComputeOptions, backend: str = BACKEND) -> None:
    """Set what `options` asks for on the step's networks, frozen ones included. Names and values of parameters stay as they are."""
    if options.activation_checkpointing:
        recomputing(step)
    if options.channels_last:
        lay_out(step, torch.channels_last)
    if options.compile:
        for network in compiled_networks(step):
            network.compile(backend=backend)


def recomputing(step: EncoderStep | AdaptorStep) -> None:
    """Stage 2: trunk and decoder of the UNet; stage 1: encoder and decoder of the autoencoder, block by block."""
    from training.step import AdaptorStep

    if isinstance(step, AdaptorStep):
        step.supir.set_gradient_checkpointing(True)
        return
    for part in (step.encoder, step.vae.decoder):
        part.gradient_checkpointing = True
        part._gradient_checkpointing_func = recompute  # the name that diffusers' parts call


def lay_out(step: EncoderStep | AdaptorStep, layout: torch.memory_format) -> None:
    """Convolution weights and pictures in this layout; what is computed from them follows. An engine may lay out what it trains anew."""
    step.layout = layout
    for network in networks(step):
        network.to(memory_format=layout)


def networks(step: EncoderStep | AdaptorStep) -> list[Any]:
    """Every network of images or latents that a step runs through, trained or frozen."""
    from training.step import AdaptorStep

    if isinstance(step, AdaptorStep):
        return [step.supir.adaptor, step.supir.unet, *step.autoencoders]
    return [step.encoder, step.vae]


def compiled_networks(step: EncoderStep | AdaptorStep) -> list[Any]:
    """Those that take nearly all of the time: the UNet with its adaptor and the encoders, or encoder, its original and decoder."""
    from training.step import AdaptorStep

    if isinstance(step, AdaptorStep):
        vae, encoder = step.autoencoders
        return [step.supir, vae.encoder, *([encoder] if encoder is not vae.encoder else [])]
    return [step.encoder, step.vae.encoder, step.vae.decoder]


def check_compiled(step: EncoderStep | AdaptorStep, batch: dict[str, Any], *, bf16: bool) -> None:
    """ValueError unless the compiled step has the gradients of the plain one, by the norm of each parameter's, on this batch and machine.

    measured: torch 2.13's inductor on a CPU gave stage 1 gradients a thirtieth of the true ones, with the right loss.
    """
    norms = []
    for stance in ("force_eager", "default"):
        with torch.compiler.set_stance(stance):
            step(batch)[0].backward()
        grads = [p.grad for p in step.parameters() if p.grad is not None]
        norms.append(torch.stack([torch.linalg.vector_norm(grad.float()) for grad in grads]))
        step.zero_grad(set_to_none=True)
    away, band = float((norms[1] - norms[0]).norm() / norms[0].norm()), COMPILED_BAND[bf16]
    if not away < band:
        raise ValueError(
            f"the compiled step has other gradients than the plain one (norms {away:.2g} apart, expected below {band:g}): torch.compile is "
            f"wrong for this network on this machine: choose another version of torch, {CURE}"
        )


def check_compiler(device: torch.device) -> None:
    """ValueError if torch.compile has nothing to compile with on this machine."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(f"compute.compile is on and there is no Triton for this GPU: install torch for CUDA with it, {CURE}")
        return
    from torch._inductor import config

    found = [name for name in config.cpp.cxx if name and shutil.which(name)]
    if not found:
        raise ValueError(f"compute.compile is on and there is no C++ compiler: install g++, {CURE}")
