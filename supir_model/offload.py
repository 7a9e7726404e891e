"""Modules that wait on the CPU until they are used (`enable_model_cpu_offload`). Without such a hook nothing happens here.

accelerate brings a module to its device when the module itself is called. We call parts of it (an encoder of an autoencoder, a block
of a UNet), so that we have to say when its time has come.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def summon(module: Module) -> Module:
    """The module, on the device where it computes."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    return module


def execution_device(module: nn.Module) -> torch.device:
    """Where the module computes: not where it waits."""
    hook = getattr(module, "_hf_hook", None)
    waiting = getattr(hook, "execution_device", None)
    return torch.device(waiting) if waiting is not None else next(module.parameters()).device
