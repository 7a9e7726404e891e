"""Configurations of the plan: which training, on which GPUs, at what prices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from training.ranges import COUNT, DECAY, NOT_NEGATIVE, POSITIVE, check


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a vendor states: memory as its driver reports it, dense bf16 matrix products with fp32 sums; and the bytes a second, one way,
    between GPUs of one node, and between nodes (a whole node's network, of which a ring of all GPUs has the use)."""

    name: str
    memory_gib: float
    bf16_tflop_s: float
    within_gb_s: float
    between_gb_s: float


# Memory and FLOP/s from the vendors' data sheets (dense, not sparse). Links are what such nodes usually have: PCIe 4 and 100 Gbit/s for
# RTX 4090 and A6000, NVLink and 200 or 400 Gbit/s a GPU for the others.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="rtx4090", memory_gib=24.0, bf16_tflop_s=165.2, within_gb_s=25.0, between_gb_s=12.5),
        Gpu(name="a6000", memory_gib=48.0, bf16_tflop_s=154.8, within_gb_s=25.0, between_gb_s=12.5),
        Gpu(name="a100-80", memory_gib=80.0, bf16_tflop_s=312.0, within_gb_s=300.0, between_gb_s=200.0),
        Gpu(name="h100", memory_gib=79.6, bf16_tflop_s=989.0, within_gb_s=450.0, between_gb_s=400.0),
        Gpu(name="h200", memory_gib=140.4, bf16_tflop_s=989.0, within_gb_s=450.0, between_gb_s=400.0),
    )
}

UNKNOWN = Gpu(name="", memory_gib=0.0, bf16_tflop_s=0.0, within_gb_s=25.0, between_gb_s=12.5)  # of any other: PCIe 4, 100 Gbit/s
DEVICES = {  # names by which torch knows those with these figures; of an H100 the SXM model alone
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known better of the GPU, or of one that GPUS has not; 0: what GPUS says. As in `Gpu`."""

    memory_gib: float = 0.0
    bf16_tflop_s: float = 0.0
    within_gb_s: float = 0.0
    between_gb_s: float = 0.0

    def __post_init__(self) -> None:
        check(self, "figures", **{name: NOT_NEGATIVE for name in vars(self)})


@dataclass(frozen=True, kw_only=True)
class Prices:
    """In any one currency; 0: not told. They change, so they are inputs, with the day on which they held."""

    gpu_hour: float = 0.0
    storage_gb_month: float = 0.0
    traffic_gb: float = 0.0
    date: str = ""

    def __post_init__(self) -> None:
        check(self, "prices", gpu_hour=NOT_NEGATIVE, storage_gb_month=NOT_NEGATIVE, traffic_gb=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """`stage` and `training` name a recipe of train_encoder or train_adaptor; fields that are 0 or empty are its own.

    `utilisation` is the share of the GPU's nominal FLOP/s that a step reaches while it computes: measured, or given.
    """

    stage: str = "adaptor"
    training: str = "paper"
    network: str = ""
    steps: int = 0
    micro_batch: int = 0
    zero_stage: Literal[0, 1, 2] = 0
    offload_optimizer: bool = False
    activation_checkpointing: bool = False
    gpu: str = "a6000"
    figures: Figures = field(default_factory=Figures)
    gpus: int = 64
    gpus_per_node: int = 8
    utilisation: float = 0.3  # choice: the best public convolutional UNets reach 0.26 to 0.33 of nominal
    memory_reserve: float = 0.1  # choice: for workspaces and fragmentation, a share of the GPU's memory
    image_mb: float = 0.5  # choice: an encoded image of a megapixel
    prices: Prices = field(default_factory=Prices)
    output: str = ""  # also write the plan as Markdown to this local path

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}, expected a share of the nominal FLOP/s, above 0 and up to 1")
        check(self, gpus=COUNT, gpus_per_node=COUNT, memory_reserve=DECAY, image_mb=POSITIVE, micro_batch=NOT_NEGATIVE, steps=NOT_NEGATIVE)


def paper_64xa6000() -> PlanConfig:
    """The paper's cluster (Sec. 4.1) and the paper's network."""
    return PlanConfig()


def release_64xa6000() -> PlanConfig:
    """The same with the network that the released checkpoints have."""
    return PlanConfig(network="sdxl_release")


def paper_64xh100() -> PlanConfig:
    """The paper's training on eight nodes of eight H100."""
    return PlanConfig(gpu="h100")


def encoder_64xa6000() -> PlanConfig:
    """Stage 1 on the paper's cluster."""
    return PlanConfig(stage="encoder")


RECIPES: dict[str, Callable[[], PlanConfig]] = {
    "paper_64xa6000": paper_64xa6000,
    "release_64xa6000": release_64xa6000,
    "paper_64xh100": paper_64xh100,
    "encoder_64xa6000": encoder_64xa6000,
}
