"""DeepSpeed ZeRO behind the same interface as the oracle.

DeepSpeed keeps the fp32 master weights and Adam's moments in one flat partition per worker, and its own loader wants the
world size of the save. Here the state leaves and enters by parameter name: each parameter knows which piece of which flat
partition is its own (`_hp_mapping`), and Adam's state is created before it is filled, because DeepSpeed would create it
only at the first step. Trainable parameters are fp32 and the compute runs under autocast inside the step module, so the
master weights and the parameters are the same numbers, and gradients are reduced in fp32 (docs/numerics.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
import torch.distributed as dist

from training.engines import EMA, EXP_AVG, EXP_AVG_SQ, WEIGHTS, Micro, Named, ema_decay, in_buckets
from training.engines.plain import adamw

if TYPE_CHECKING:
    from training.recipes import EngineOptions, OptimizerOptions


CPU_BUCKET = 4_000_000  # measured: numbers of a reduction; DeepSpeed's default gathers all gradients of a CPU-sized network first
GATHERED = 2**24  # choice: numbers of a reduction of a state, 64 MiB; measured: one a parameter held up a step five times as long


def deepspeed_config(
    options: EngineOptions, optimizer: OptimizerOptions, *, micro_batch: int, accumulation: int, device: torch.device
) -> dict[str, Any]:
    """The dictionary that DeepSpeed wants, derived from ours. The total batch is left out: it follows from these two and the world."""
    zero: dict[str, Any] = {
        "stage": options.zero_stage,
        "overlap_comm": False,  # choice: losses that repeat come before a few per cent of overlap
        "contiguous_gradients": True,
    }
    if device.type == "cpu":
        zero["reduce_bucket_size"] = CPU_BUCKET
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW needs no compiler
        "steps_per_print": 2**31 - 1,
    }


class ZeroEngine:
    """DeepSpeed stage 1 or 2 over the default process group (one is made for a single process where there is none).

    Stage 3 trains and gives its state, and a test holds that; recipes do not offer it. It would shard the weights themselves, so that no
    worker alone could validate or export, and what is large beside the moments, the frozen networks, is in no shard.
    """

    def __init__(
        self,
        step: torch.nn.Module,
        *,
        options: EngineOptions,
        optimizer: OptimizerOptions,
        global_batch: int,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
    ) -> None:
        self.optimizer_step = 0
        self._device = device
        _without_compiled_collectives()
        if device.type == "cpu":
            _gather_by_broadcasts()
        _ensure_group(device)
        self._named = {name: p for name, p in step.named_parameters() if p.requires_grad}
        config = deepspeed_config(options, optimizer, micro_batch=micro_batch, accumulation=accumulation, device=device)
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=step,
            optimizer=adamw(list(self._named.values()), optimizer),
            config=config,
            dist_init_required=False,
        )
        half_life = optimizer.ema_half_life_images
        self._whole = options.zero_stage < 3
        assert self._whole or not half_life, "stage 3 keeps no moving average"
        self._decay = ema_decay(half_life, global_batch) if half_life else None
        self._ema = [flat.detach().clone() for flat in self._flats] if half_life else []

    @property
    def _flats(self) -> list[torch.Tensor]:
        """This worker's fp32 partition of each parameter group."""
        flats: list[torch.Tensor] = self._zero.single_partition_of_fp32_groups
        return flats

    @property
    def parts(self) -> tuple[str, ...]:
        return (WEIGHTS, EXP_AVG, EXP_AVG_SQ, *((EMA,) if self._ema else ()))

    def accumulate(self, batches: list[dict[str, Any]]) -> list[Micro]:
        micros = []
        for i, batch in enumerate(batches):
            loss, parts = self._engine(batch)
            self._engine.backward(loss)
            if i < len(batches) - 1:
                self._engine.step()  # not a boundary: only counts the micro step
            micros.append(Micro(loss=loss.detach(), parts=parts))
        return micros

    def update(self, lr: float) -> float:
        self._zero.optimizer.param_groups[0]["lr"] = lr
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if norm == norm and norm != float("inf"):
            self.optimizer_step += 1
            self._average()
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        if self._decay is not None:
            for ema, flat in zip(self._ema, self._flats, strict=True):
                ema.lerp_(flat, 1 - self._decay)

    def gather(self, part: str) -> dict[str, torch.Tensor] | None:
        if not self._whole:
            return self._gather_shards(part)
        gathered: dict[str, torch.Tensor] = {}
        sources = self._sources(part)
        for names in in_buckets({name: p.numel() for name, p in self._named.items()}, GATHERED):
            sizes = [self._named[name].numel() for name in names]
            full = torch.zeros(sum(sizes), dtype=torch.float32, device=self._device)
            for name, room in zip(names, full.split(sizes), strict=True):
                for here, there in self._pieces(self._named[name], sources):
                    room[there].copy_(here)
            dist.reduce(full, dst=0)  # exactly one worker holds each element, the others add zero
            if dist.get_rank() == 0:
                pieces = zip(names, full.cpu().split(sizes), strict=True)
                gathered |= {name: piece.view(self._named[name].shape) for name, piece in pieces}
        return gathered if dist.get_rank() == 0 else None

    def _gather_shards(self, part: str) -> dict[str, torch.Tensor] | None:
        """Of stage 3, where a parameter is in pieces on all workers."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def full(p: torch.nn.Parameter) -> torch.Tensor:
            tensor: torch.Tensor = safe_get_full_fp32_param(p) if part == WEIGHTS else safe_get_full_optimizer_state(p, part)
            return tensor.detach().cpu().clone()

        gathered = {name: full(p) for name, p in self._named.items()}  # collective: on every worker
        return gathered if dist.get_rank() == 0 else None

    @torch.no_grad()
    def load(self, state: Mapping[str, Named], optimizer_step: int) -> None:
        self.optimizer_step = optimizer_step
        self._create_moments(optimizer_step)
        for part in self.parts:
            named = state.get(part, state[WEIGHTS])  # a state without an average starts one from its weights
            sources = self._sources(part)
            for name, p in self._named.items():
                for here, there in self._pieces(p, sources):
                    here.copy_(named[name].flatten()[there])
        self._zero.update_lp_params()

    def _create_moments(self, optimizer_step: int) -> None:
        base = self._zero.optimizer
        for flat in self._flats:
            base.state[flat] = {
                "step": torch.tensor(float(optimizer_step), device=flat.device),
                EXP_AVG: torch.zeros_like(flat),
                EXP_AVG_SQ: torch.zeros_like(flat),
            }

    def _sources(self, part: str) -> list[torch.Tensor]:
        """The flat partition of each parameter group that holds this part."""
        if part == WEIGHTS:
            return self._flats
        if part == EMA:
            return self._ema
        state = self._zero.optimizer.state
        return [state[flat][part] if flat in state else torch.zeros_like(flat) for flat in self._flats]

    def _pieces(self, p: torch.nn.Parameter, sources: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, slice]]:
        """This worker's pieces of a parameter: a view into the flat partition, and where it lies in the parameter."""
        mapping = p._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            flat = sources[mapping.param_group_index]
            yield flat.detach().narrow(0, here.start, here.numel), slice(there.start, there.start + there.numel)


def _without_compiled_collectives() -> None:
    """On a CPU DeepSpeed would compile a shared-memory collective at start; gloo does without, and needs no compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _gather_by_broadcasts() -> None:
    """Have DeepSpeed's stages 1 and 2 give the updated weights to all workers by `broadcast_parts`; `allgather_partitions` does nothing."""
    from deepspeed.runtime.zero import stage_1_and_2

    assert hasattr(stage_1_and_2, "all_gather_dp_groups"), "this DeepSpeed gathers in another way: look for what took its place"
    stage_1_and_2.all_gather_dp_groups = broadcast_parts


def broadcast_parts(*, partitioned_param_groups: list[list[torch.Tensor]], dp_process_group: list[Any], **_: Any) -> None:
    """Every worker's part of each parameter group to all workers, all at once.

    Measured (docs/results/step.md): through gloo a third of the time of `all_gather_into_tensor`, which copies on its way.
    """
    works = [
        dist.broadcast(part, dist.get_global_rank(group, rank), group, async_op=True)
        for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True)
        for rank, part in enumerate(parts)
        if len(parts) > 1
    ]
    for work in works:
        work.wait()


def _ensure_group(device: torch.device) -> None:
    if not dist.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # DeepSpeed reads it; launchers set it
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", dist_init_required=False)
