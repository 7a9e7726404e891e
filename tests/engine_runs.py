"""Short trainings with bare engines, several of them in one process group: what the tests of the engines compare."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tests.helpers import free_port

BATCH = 12


@dataclass(frozen=True)
class Case:
    """One training: engine, ZeRO stage, passes a step, first and last step, where its state comes from, and what is trained."""

    name: str
    kind: str
    stage: int = 2
    passes: int = 1
    first: int = 0
    last: int = 16
    start: str | None = None
    step: str = "toy"  # "toy", "adaptor" or "encoder": SDXL's layout, small
    bf16: bool = False
    offload: bool = False
    lr: float = 1e-2


class Toy(torch.nn.Module):
    """A small network with a normalisation, an unused parameter and shapes that no number of workers divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(17, 33), torch.nn.LayerNorm(33), torch.nn.Linear(33, 5)
        self.still = torch.nn.Parameter(torch.ones(7))
        for i, p in enumerate(self.parameters()):
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = self.last(torch.tanh(self.norm(self.first(batch["x"]))))
        loss_B = (y - batch["y"]).square().mean(dim=1)
        return loss_B.mean() + 0 * self.still.sum(), {"loss_B": loss_B.detach()}


def toy_batch(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return {"x": torch.randn(BATCH, 17, generator=g), "y": torch.randn(BATCH, 5, generator=g)}


def network() -> Any:
    """SDXL's layout at the smallest widths that its layers allow: 0.9 M parameters in the adaptor."""
    from supir_model.presets import get_network

    sizes = {"block_out_channels": (32, 64, 64), "vae_block_out_channels": (8, 8, 8), "context_dim": 32, "pooled_dim": 16}
    return replace(get_network("tiny"), **sizes)


STEP_BATCH, CROP_PX = 8, 32


def picture_batch(step: int) -> dict[str, Any]:
    """Smooth random pictures and noisy ones, timesteps, noise and text of one global batch."""
    net, g = network(), torch.Generator().manual_seed(1000 + step)
    coarse = torch.rand(STEP_BATCH, 3, 6, 6, generator=g) * 2 - 1
    x_BCHW = torch.nn.functional.interpolate(coarse, CROP_PX, mode="bicubic").clamp(-1, 1)
    side = CROP_PX // net.vae_factor
    return {
        "x_gt_BCHW": x_BCHW,
        "x_lq_BCHW": (x_BCHW + 0.2 * torch.randn(x_BCHW.shape, generator=g)).clamp(-1, 1),
        "timestep_B": torch.randint(0, 1000, (STEP_BATCH,), generator=g),
        "noise_BCHW": torch.randn(STEP_BATCH, net.latent_channels, side, side, generator=g),
        "prompts": torch.randn(STEP_BATCH, 77, net.context_dim + net.pooled_dim, generator=g),  # what the text encoders would say
    }


def build_step(case: Case) -> tuple[torch.nn.Module, Callable[[int], dict[str, Any]], int]:
    """The module, its global batches by step, and their size."""
    if case.step == "toy":
        return Toy(), toy_batch, BATCH
    from supir_model.encoder import copy_encoder
    from supir_model.network import SupirAdaptor
    from training.step import AdaptorStep, EncoderStep

    net = network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = net.build_vae()
        if case.step == "encoder":
            step = EncoderStep(vae, copy_encoder(vae), loss="frozen_encoder", latent_weight=0.05, bf16=case.bf16)
            return step, picture_batch, STEP_BATCH
        unet = net.build_unet()
        adaptor = SupirAdaptor.from_unet(unet, net)

    def text(said: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return said[..., : net.context_dim], said[:, 0, net.context_dim :]

    step2 = AdaptorStep(
        unet=unet, adaptor=adaptor, vae=vae, encoder=vae.encoder, encode_text=text, conditioning_size_px=128, bf16=case.bf16
    )
    return step2, picture_batch, STEP_BATCH


def run(case: Case, folder: str, rank: int, world: int) -> None:
    """Train, and leave losses, gradient norms and the state in a file of the case's name."""
    import torch.distributed as dist

    from training.engines import build_engine
    from training.recipes import EngineOptions, OptimizerOptions

    step, batch_of, size = build_step(case)
    micro = size // world // case.passes
    options = EngineOptions(kind=case.kind, zero_stage=case.stage, offload_optimizer=case.offload)  # type: ignore[arg-type]
    ema = 0 if case.stage == 3 else 100
    engine = build_engine(
        step, options=options, global_batch=size, micro_batch=micro, accumulation=case.passes, device=torch.device("cpu"),
        optimizer=OptimizerOptions(lr=case.lr, grad_clip=0.5, ema_half_life_images=ema),
    )  # fmt: skip
    if case.start:
        state = torch.load(f"{folder}/{case.start}", weights_only=True)
        engine.load(state["parts"], state["optimizer_step"])
    losses = []
    for number in range(case.first, case.last):
        mine = {name: value[rank::world] for name, value in batch_of(number).items()}
        micros = engine.accumulate([{name: value[i * micro : (i + 1) * micro] for name, value in mine.items()} for i in range(case.passes)])
        loss = torch.stack([m.loss for m in micros]).mean()
        if dist.is_initialized():
            dist.all_reduce(loss)
        losses.append((float(loss) / world, engine.update(case.lr)))
    parts = {part: engine.gather(part) for part in engine.parts}
    if rank == 0:
        torch.save({"parts": parts, "optimizer_step": engine.optimizer_step, "losses": losses}, f"{folder}/{case.name}")


def worker(rank: int, world: int, port: int, folder: str, cases: list[Case]) -> None:
    import torch.distributed as dist

    from training.engines import zero

    zero.GATHERED = 600  # a state is gathered in several reductions, as a large one would be
    faulthandler.enable()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for case in cases:
        run(case, folder, rank, world)
    dist.barrier()  # who leaves early takes the store or a connection from those that still work
    dist.destroy_process_group()


def spawn(world: int, folder: Path, *cases: Case) -> None:
    """The cases one after the other in one group of gloo workers: forks of a process that has imported everything and done nothing."""
    get_context("forkserver").set_forkserver_preload([__name__, "training.engines.zero", "training.step", "supir_model.encoder"])
    workers = (world, free_port(), str(folder), list(cases))
    torch.multiprocessing.start_processes(worker, args=workers, nprocs=world, start_method="forkserver")


def results_in(folder: Path) -> dict[str, Any]:
    """What each case left, by its name."""
    return {path.name: torch.load(path, weights_only=True) for path in folder.iterdir()}


def loss_gap(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of the losses of any step."""
    assert len(found["losses"]) == len(expected["losses"]), "another number of steps"
    return max(abs(a[0] / b[0] - 1) for a, b in zip(found["losses"], expected["losses"], strict=True))
