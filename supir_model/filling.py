"""Networks made on the meta device are filled from a file one tensor at a time, after names and shapes were compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from supir_model import keys
from supir_model.checkpoint_file import TensorFile
from supir_model.recognise import recognise

SHOWN = 3  # names of each sort in an error
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours comes from: a name in the file, and what is taken of it."""

    name: str
    take: Callable[[Tensor], Tensor] = lambda tensor: tensor


def same_names(module: nn.Module) -> dict[str, Source]:
    """Sources of a file that bears our own names."""
    return {name: Source(name) for name in module.state_dict()}


def vae_sources(module: nn.Module, prefix: str) -> dict[str, Source]:
    """Sources of an AutoencoderKL, or of an encoder alone, in the original layout."""
    return {
        ours: Source(prefix + theirs, _matrix) if keys.is_vae_attention_matrix(theirs) else Source(prefix + theirs)
        for ours, theirs in keys.vae_keys(module.state_dict()).items()
    }


def fill(
    module: ModuleT,
    file: TensorFile,
    sources: Mapping[str, Source],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> ModuleT:
    """`module`, made on the meta device, with its weights from `file`; `dtype` None keeps the precision of each as stored.

    Beyond the module itself no more than one tensor is in memory. Call `check_fit` first.
    """
    for name, parameter in list(module.named_parameters()):
        filled = _copied(file, sources[name], device, dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(filled, requires_grad=parameter.requires_grad))
    return module


def check_fit(
    module: nn.Module, file: TensorFile, sources: Mapping[str, Source], *, what: str, owned: tuple[str, ...] = ("",), hint: str = ""
) -> None:
    """ValueError that names missing, surplus and mis-shaped tensors, unless `sources` fill `module`.

    A name is surplus if it starts with one of `owned` and no source reads it. `what` says what was looked for, `hint` what to
    do; without it the error says what the file seems to be.
    """
    if faults := misfits(module.state_dict(), file, sources, owned):
        raise ValueError(f"{file.path} does not hold {what}: {'; '.join(faults)}. {hint or seems(file)}")


def misfits(expected: Mapping[str, Tensor], file: TensorFile, sources: Mapping[str, Source], owned: tuple[str, ...]) -> list[str]:
    """What keeps a file from filling tensors of these names and shapes, in words; empty if nothing does."""
    read = {source.name for source in sources.values()}
    missing = [source.name for source in sources.values() if source.name not in file.meta]
    surplus = [name for name in file.meta if name.startswith(owned) and name not in read]
    shapes, precisions = [], []
    for ours, source in sources.items():
        if source.name in file.meta:
            stored = source.take(file.meta[source.name])
            if stored.shape != expected[ours].shape:
                shapes.append(f"{source.name} is {list(stored.shape)}, expected {list(expected[ours].shape)}")
            if stored.dtype not in PRECISIONS:
                precisions.append(f"{source.name} is {stored.dtype}")
    return [
        *_counted("missing", missing),
        *_counted("surplus", surplus),
        *_counted("of another shape", shapes),
        *_counted("of a precision that is not read (quantised?)", precisions),
    ]


def seems(file: TensorFile) -> str:
    """What the file seems to be and what to do with it, as a sentence."""
    kind = recognise(file.meta)
    return f"It seems to be {kind.name}: {kind.advice}."


def _copied(file: TensorFile, source: Source, device: str | torch.device, dtype: torch.dtype | None) -> Tensor:
    """A function of its own: what was read is given up before the next tensor is."""
    stored = source.take(file[source.name])
    return torch.empty(stored.shape, dtype=dtype or stored.dtype, device=device).copy_(stored)


def _matrix(tensor: Tensor) -> Tensor:
    """A 1x1 convolution as the linear layer that it is."""
    return tensor.flatten(1)


def _counted(fault: str, found: Sequence[Any]) -> list[str]:
    if not found:
        return []
    shown = ", ".join(found[:SHOWN])
    return [f"{len(found)} {'tensor' if len(found) == 1 else 'tensors'} {fault} ({shown}{', ...' if len(found) > SHOWN else ''})"]
