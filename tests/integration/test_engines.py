"""The engines agree, and take over each other's state, on one, two and three gloo workers."""

from __future__ import annotations

import faulthandler
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import free_port

pytestmark = pytest.mark.integration

BATCH, HALF, END = 12, 8, 16
# fp32 sums of a dozen numbers in another order: some units in the last place of each gradient, which Adam passes on
BAND = 3e-6


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


@dataclass(frozen=True)
class Case:
    """One training: engine, ZeRO stage, passes a step, first and last step, and where its state comes from."""

    name: str
    kind: str
    stage: int = 2
    passes: int = 1
    first: int = 0
    last: int = END
    start: str | None = None


def batch_of(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return {"x": torch.randn(BATCH, 17, generator=g), "y": torch.randn(BATCH, 5, generator=g)}


def run(case: Case, folder: str, rank: int, world: int) -> None:
    import torch.distributed as dist

    from training.engines import build_engine
    from training.recipes import EngineOptions, OptimizerOptions

    micro = BATCH // world // case.passes
    engine = build_engine(
        Toy(), options=EngineOptions(kind=case.kind, zero_stage=case.stage), global_batch=BATCH, micro_batch=micro,  # type: ignore[arg-type]
        optimizer=OptimizerOptions(lr=1e-2, grad_clip=0.5, ema_half_life_images=100), accumulation=case.passes, device=torch.device("cpu"),
    )  # fmt: skip
    if case.start:
        state = torch.load(f"{folder}/{case.start}", weights_only=True)
        engine.load(state["parts"], state["optimizer_step"])
    losses = []
    for step in range(case.first, case.last):
        mine = {name: value[rank::world] for name, value in batch_of(step).items()}
        micros = engine.accumulate([{name: value[i * micro : (i + 1) * micro] for name, value in mine.items()} for i in range(case.passes)])
        loss = torch.stack([m.loss for m in micros]).mean()
        if dist.is_initialized():
            dist.all_reduce(loss)
        losses.append((float(loss) / world, engine.update(1e-2)))
    parts = {part: engine.gather(part) for part in engine.parts}
    if rank == 0:
        torch.save({"parts": parts, "optimizer_step": engine.optimizer_step, "losses": losses}, f"{folder}/{case.name}")


def worker(rank: int, world: int, port: int, folder: str, cases: list[Case]) -> None:
    import torch.distributed as dist

    faulthandler.enable()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for case in cases:
        run(case, folder, rank, world)
    dist.barrier()  # who leaves early takes the store or a connection from those that still work
    dist.destroy_process_group()


def spawn(world: int, folder: Path, *cases: Case) -> None:
    torch.multiprocessing.spawn(worker, args=(world, free_port(), str(folder), list(cases)), nprocs=world)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engines")
    spawn(
        2, folder,
        Case("plain", "plain"), Case("zero2", "zero"), Case("zero1", "zero", stage=1),
        Case("plain in passes", "plain", passes=2), Case("zero2 in passes", "zero", passes=2),
        Case("half zero2", "zero", last=HALF), Case("half plain", "plain", last=HALF),
        Case("zero2 -> zero2", "zero", first=HALF, start="half zero2"),
        Case("zero2 -> plain", "plain", first=HALF, start="half zero2"),
        Case("plain -> zero1", "zero", stage=1, first=HALF, start="half plain"),
    )  # fmt: skip
    spawn(3, folder, Case("zero2 on 2 -> zero2 on 3", "zero", first=HALF, start="half zero2"))
    run(Case("zero2 on 2 -> plain alone", "plain", first=HALF, start="half zero2"), str(folder), 0, 1)
    return {path.name: torch.load(path, weights_only=True) for path in folder.iterdir()}


def differs(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of losses and norms, or absolute difference of any tensor of the state."""
    assert found["optimizer_step"] == expected["optimizer_step"]
    last = expected["losses"][-len(found["losses"]) :]
    scalars = [abs(a - b) / abs(b) for mine, other in zip(found["losses"], last, strict=True) for a, b in zip(mine, other, strict=True)]
    tensors = [float((found["parts"][p][n] - t).abs().max()) for p, named in expected["parts"].items() for n, t in named.items()]
    return max(scalars + tensors)


@pytest.mark.parametrize("name", ["zero2", "zero1", "plain in passes", "zero2 in passes"])
def test_zero_gives_the_losses_and_the_state_of_the_oracle(results: dict[str, Any], name: str) -> None:
    assert differs(results[name], results["plain"]) < BAND


def test_a_resumed_run_is_the_uninterrupted_run_bit_by_bit(results: dict[str, Any]) -> None:
    assert differs(results["zero2 -> zero2"], results["zero2"]) == 0


@pytest.mark.parametrize("name", ["zero2 -> plain", "plain -> zero1", "zero2 on 2 -> zero2 on 3", "zero2 on 2 -> plain alone"])
def test_any_engine_on_any_number_of_workers_goes_on_from_the_state_of_another(results: dict[str, Any], name: str) -> None:
    assert differs(results[name], results["plain"]) < BAND
