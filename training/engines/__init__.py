"""Engines: what turns one micro batch after another into one update of the trainable parameters.

Two exist: `plain` (DistributedDataParallel, the oracle) and `zero` (DeepSpeed ZeRO). Both wrap one module whose forward
returns the loss, and both speak of their state by parameter name, in full fp32 tensors, so that what one has saved the
other can resume, on any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from training.recipes import EngineOptions, OptimizerOptions

WEIGHTS, EXP_AVG, EXP_AVG_SQ, EMA = "weights", "exp_avg", "exp_avg_sq", "ema"
"""Parts of a training state: fp32 master weights, Adam's two moments, the moving average of the weights."""

Named = Mapping[str, "torch.Tensor"]
Forward = Callable[[], tuple["torch.Tensor", dict[str, "torch.Tensor"]]]


@dataclass(frozen=True, kw_only=True)
class Micro:
    """What one micro batch gave: its mean loss and the step's detached parts (all on the device, nothing synchronised)."""

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]


class Engine(Protocol):
    """One module, its optimizer, and the collectives between the workers."""

    optimizer_step: int  # updates made so far; Adam's bias correction follows it

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that this engine's state holds."""
        ...

    def accumulate(self, batches: list[dict[str, Any]]) -> list[Micro]:
        """Forward and backward of this worker's micro batches; gradients end as the mean over micro batches and workers."""
        ...

    def update(self, lr: float) -> float:
        """Clip, AdamW, moving average. Returns the global gradient norm before clipping; not finite means: not updated."""
        ...

    def gather(self, part: str) -> dict[str, torch.Tensor] | None:
        """Full fp32 tensors of one part by parameter name, on the CPU of rank 0 (None elsewhere). Collective."""
        ...

    def load(self, state: Mapping[str, Named], optimizer_step: int) -> None:
        """Take over a state that any engine on any number of workers has saved. Every rank is given the whole of it."""
        ...


def ema_decay(half_life_images: float, batch: int) -> float:
    """Decay of the moving average per update, so that a weight's share halves every `half_life_images` images."""
    return float(0.5 ** (batch / half_life_images))


def clip_scale(norm: float, limit: float) -> float:
    """Factor that brings a gradient of this norm under the limit (0: no limit)."""
    return 1.0 if limit <= 0 or norm <= limit or not math.isfinite(norm) else limit / (norm + 1e-6)


def in_buckets(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Names in their order, as many together as `room` numbers hold, at least one."""
    buckets: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not buckets or size > left:
            buckets.append([])
            left = room
        buckets[-1].append(name)
        left -= size
    return buckets


def build_engine(
    step: torch.nn.Module,
    *,
    options: EngineOptions,
    optimizer: OptimizerOptions,
    global_batch: int,
    micro_batch: int,
    accumulation: int,
    device: torch.device,
) -> Engine:
    """The engine that the configuration names, around a step module whose trainable parameters are its registered ones."""
    common: dict[str, Any] = {"optimizer": optimizer, "global_batch": global_batch, "device": device}
    if options.kind == "plain":
        from training.engines.plain import PlainEngine

        return PlainEngine(step, **common)
    from training.engines.zero import ZeroEngine

    return ZeroEngine(step, options=options, micro_batch=micro_batch, accumulation=accumulation, **common)
