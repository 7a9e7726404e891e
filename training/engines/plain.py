"""The oracle engine: DistributedDataParallel and torch's AdamW; without a process group, one process and no collectives."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from training.engines import EMA, EXP_AVG, EXP_AVG_SQ, WEIGHTS, Micro, Named, clip_scale, ema_decay

if TYPE_CHECKING:
    from training.recipes import OptimizerOptions


def adamw(params: list[torch.nn.Parameter], options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW as both engines use it (elementwise, so that flat partitions and whole tensors agree).

    Fused: each number is read and written once. measured on a CPU: an update takes about 0.6 of the time (docs/results/step.md).
    """
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(params, lr=options.lr, betas=betas, eps=options.eps, weight_decay=options.weight_decay, fused=True)


class PlainEngine:
    """DDP over the default process group, or the bare module where there is none."""

    def __init__(
        self, step: torch.nn.Module, *, optimizer: OptimizerOptions, global_batch: int, device: torch.device
    ) -> None:
        self.optimizer_step = 0
        self._named = {name: p for name, p in step.named_parameters() if p.requires_grad}
        self._options = optimizer
        self._optimizer = adamw(list(self._named.values()), optimizer)
        half_life = optimizer.ema_half_life_images
        self._decay = ema_decay(half_life, global_batch) if half_life else None
        self._ema = {n: p.detach().float().clone() for n, p in self._named.items()} if half_life else {}
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._module: torch.nn.Module = step
        if dist.is_initialized() and dist.get_world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self._module = DistributedDataParallel(step, device_ids=ids)

    @property
    def parts(self) -> tuple[str, ...]:
        return (WEIGHTS, EXP_AVG, EXP_AVG_SQ, *((EMA,) if self._ema else ()))

    def accumulate(self, batches: list[dict[str, Any]]) -> list[Micro]:
        micros = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            quiet = isinstance(self._module, DistributedDataParallel) and not last
            with self._module.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                loss, parts = self._module(batch)
                (loss / len(batches)).backward()
            micros.append(Micro(loss=loss.detach(), parts=parts))
        return micros

    def update(self, lr: float) -> float:
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        squares = torch.stack([torch.linalg.vector_norm(g.double()) for g in grads]).square()
        norm = float(squares.sum().sqrt())
        if norm == norm and norm != float("inf"):
            torch._foreach_mul_(grads, clip_scale(norm, self._options.grad_clip))
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
            self.optimizer_step += 1
            self._average()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        if self._decay is not None:
            for name, p in self._named.items():
                self._ema[name].lerp_(p.detach().float(), 1 - self._decay)

    def gather(self, part: str) -> dict[str, torch.Tensor] | None:
        if self._rank != 0:
            return None
        return {name: self._tensor(part, name).detach().cpu().float().clone() for name in self._named}

    def _tensor(self, part: str, name: str) -> torch.Tensor:
        if part == EMA:
            return self._ema[name]
        p = self._named[name]
        if part == WEIGHTS:
            return p
        moment: torch.Tensor | None = self._optimizer.state.get(p, {}).get(part)
        return torch.zeros_like(p) if moment is None else moment  # before the first update: what Adam starts from

    @torch.no_grad()
    def load(self, state: Mapping[str, Named], optimizer_step: int) -> None:
        self.optimizer_step = optimizer_step
        for name, p in self._named.items():
            p.copy_(state[WEIGHTS][name])
            if self._ema:
                self._ema[name].copy_(state[EMA if EMA in state else WEIGHTS][name])
            self._optimizer.state[p] = {
                "step": torch.tensor(float(optimizer_step), device=p.device),
                EXP_AVG: state[EXP_AVG][name].to(p.device, p.dtype).clone(),
                EXP_AVG_SQ: state[EXP_AVG_SQ][name].to(p.device, p.dtype).clone(),
            }
