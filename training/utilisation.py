"""Model FLOPs utilisation (MFU): the share of its devices' nominal FLOP/s that a training turns into work which a step needs.

MFU = images/s x FLOPs of one image / (devices x nominal FLOP/s of one), Chowdhery et al. 2022, App. B. What a block computes twice to
save memory does not count as work. Norms, activations and the optimizer are not counted, so the whole step's time is what it is of.
"""

from __future__ import annotations

from training.loop import Place
from training.recipes import RunConfig
from training.recipes_plan import DEVICES, GPUS

TERA = 1e12


def nominal_tflop_s(config: RunConfig, device_name: str) -> float | None:
    """Of one device: as given, else of a GPU that training/recipes_plan.py knows, in bf16. None: nobody says."""
    if config.compute.nominal_tflop_s:
        return config.compute.nominal_tflop_s
    known = config.precision == "bf16" and device_name in DEVICES
    return GPUS[DEVICES[device_name]].bf16_tflop_s if known else None


def full_images_per_s(config: RunConfig, place: Place) -> float | None:
    """Images a second, of all workers, at which MFU would be 1; None where the nominal FLOP/s are not known. Counting takes seconds."""
    import torch

    from training.flops import count

    nominal = nominal_tflop_s(config, torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "")
    if nominal is None:
        return None
    return nominal * TERA * place.world / count(config).useful
