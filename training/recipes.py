"""Configurations of the two stages of training. A recipe is a function that returns a whole run; flags replace fields of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from supir_model.presets import PAPER_PROMPTS, RELEASED_PROMPTS
from training.ranges import COUNT, DECAY, NOT_NEGATIVE, POSITIVE, SHARE, check
from training.timesteps import TimestepOptions


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset of the mixture and its share of the draws."""

    name: str
    url: str
    weight: float
    captions: bool = True  # read the dataset's captions table; False: the empty caption (stage 1 reads no text)
    negative: bool = False  # samples of bad quality: their own text alone, neither dropped nor followed by quality words


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a position in the global sequence becomes a training pair."""

    global_batch: int
    micro_batch: int  # samples per worker in one forward pass
    crop_px: int
    short_side_px: int | None  # images are resized to this short side before the crop; None: only if smaller than the crop
    lanes: int = 64  # choice: divides into 1, 2, 4 … 64 workers
    window_shards: int = 4  # choice: shards that are shuffled together
    degradation: str = "real_esrgan"  # a preset, or a mixture of several: "real_esrgan=0.7,light_stablesr=0.3"
    flip: bool = True  # choice: photographs have no left and right
    caption_dropout: float = 0.1  # choice: not stated in the paper; 0.1 is usual where guidance is used
    quality_words: Literal["none", "released", "paper"] = "released"  # choice: trained with, because inference appends them (App. A.2)
    timestep: TimestepOptions = field(default_factory=TimestepOptions)
    true_sizes: bool = False  # choice: off, one size condition for all (conditioning_size_px); on: each picture's own, as SDXL was trained
    fraction: float = 1.0  # share of the images that may be drawn, by their ids: a smaller one is part of a larger one (Fig. 12)
    exclude_heldout: bool = True  # photographs that are scored stay out (infra.holdout)
    decode_ahead: int = 4  # choice: batches prepared before they are asked for
    decode_threads: int = 1  # of them at a time; a sample of 512 px takes one core 33 ms (docs/results/step.md)
    cache_mb: int = 256  # choice: decoded images kept: small corpora are free to read; 0: of each only what its crop needs is decoded

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"batch.fraction is {self.fraction:g}, expected a share of the images above 0 and up to 1")
        check(self, "batch", window_shards=COUNT, caption_dropout=SHARE, decode_ahead=COUNT, decode_threads=COUNT, cache_mb=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW and its schedule: linear warm-up, then constant or linear to `lr_end_fraction` at the last step."""

    lr: float
    beta1: float = 0.9  # choice: not stated; AdamW's usual value
    beta2: float = 0.999  # choice: not stated; AdamW's usual value
    eps: float = 1e-8  # choice: not stated; AdamW's usual value
    weight_decay: float = 0.01  # choice: not stated; AdamW's usual value
    grad_clip: float = 1.0  # choice: not stated; 0 turns it off
    warmup_steps: int = 0
    lr_end_fraction: float = 1.0  # 1: constant
    ema_half_life_images: float = 0  # 0: no moving average

    def __post_init__(self) -> None:
        check(
            self, "optimizer", lr=POSITIVE, beta1=DECAY, beta2=DECAY, eps=POSITIVE, weight_decay=NOT_NEGATIVE, grad_clip=NOT_NEGATIVE,
            warmup_steps=NOT_NEGATIVE, lr_end_fraction=SHARE, ema_half_life_images=NOT_NEGATIVE,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What makes an update out of gradients."""

    kind: Literal["plain", "zero"] = "zero"
    zero_stage: Literal[1, 2] = 2
    offload_optimizer: bool = False


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How a step is computed: memory and layout against time; and what its speed is measured by. None of these changes a loss beyond
    rounding."""

    activation_checkpointing: bool = False  # what blocks hold for the backward pass is computed again there; losses stay bit-equal
    channels_last: bool = False  # choice: off until a GPU says what it gains; a CPU gains nothing
    compile: bool = False  # torch.compile of the trained networks and what they run through; minutes at the first step
    nominal_tflop_s: float = 0.0  # of one device, which MFU is a share of; 0: by the GPU's name where it is known, else MFU is not logged

    def __post_init__(self) -> None:
        check(self, "compute", nominal_tflop_s=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Where the workers run. `launcher` "local" is this process alone, without Ray and without a process group."""

    launcher: Literal["ray", "local"] = "ray"
    workers: int = 2
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    threads: int = 1  # torch threads of a worker on a CPU
    restarts: int = 3  # how often the worker group may be started again after a failure

    def __post_init__(self) -> None:
        check(
            self, "launch", workers=COUNT, cpus_per_worker=NOT_NEGATIVE, gpus_per_worker=NOT_NEGATIVE, threads=COUNT, restarts=NOT_NEGATIVE
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When the state is saved and how many saves are kept."""

    every_steps: int
    keep: int = 2

    def __post_init__(self) -> None:
        check(self, "checkpoint", every_steps=COUNT, keep=COUNT)


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Fixed pictures with fixed noise, looked at every so many steps."""

    every_steps: int
    images: int = 4
    restore_steps: int = 0  # stage 2: sampling steps in which the pictures are restored too; 0: they are not

    def __post_init__(self) -> None:
        check(self, "validation", every_steps=COUNT, images=NOT_NEGATIVE, restore_steps=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What both stages share. `prior` is a folder of weights, `output` any address that infra.storage takes."""

    input: str
    output: str
    prior: str
    network: str
    steps: int
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"  # of the frozen networks and of the compute; what is trained stays fp32
    negatives: str | None = None  # dataset of negative samples
    negatives_weight: float = 0.0
    faces: str | None = None  # dataset of faces
    faces_weight: float = 0.0
    batch: BatchOptions
    optimizer: OptimizerOptions
    engine: EngineOptions = field(default_factory=EngineOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    checkpoint: CheckpointOptions
    validation: ValidationOptions

    def __post_init__(self) -> None:
        check(self, steps=COUNT)

    @property
    def sources(self) -> list[Source]:
        """The mixture: photographs take what the others leave."""
        rest = 1.0 - self.negatives_weight - self.faces_weight
        if not 0 < rest <= 1 or min(self.negatives_weight, self.faces_weight) < 0:
            raise ValueError(
                f"mixture: negatives_weight {self.negatives_weight} and faces_weight {self.faces_weight} leave {rest:g} for "
                "the photographs: each must be 0 or more and together below 1"
            )
        found = [Source(name="photographs", url=self.input, weight=rest)]
        extra = (("negatives", self.negatives, self.negatives_weight), ("faces", self.faces, self.faces_weight))
        for name, url, weight in extra:
            if weight and url is None:
                raise ValueError(f"{name}_weight is {weight} but {name} is not given: pass --set {name}=URL or --set {name}_weight=0")
            if weight and url is not None:
                found.append(Source(name=name, url=url, weight=weight, negative=name == "negatives"))
        return found


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(RunConfig):
    """Stage 1: the degradation-robust encoder.

    `loss` "frozen_encoder": the target is the original encoder's latent and image of the ground truth; "paper": the printed
    formula with the trained encoder on both sides, which has a constant encoder as its minimum.
    """

    loss: Literal["frozen_encoder", "paper"] = "frozen_encoder"
    latent_weight: float = 0.05  # choice: distances of latents are some 20 times those of images; so neither drowns the other
    kl_weight: float = 0.0  # choice: off, for only the mean is read; LDM's autoencoders had 1e-6
    perceptual_weight: float = 0.0  # choice: off, the paper names no such term
    perceptual: str | None = None  # .safetensors of VGG-16, perhaps with LPIPS' weights (supir_model/perceptual.py); never fetched
    alarm_mean: float = 0.25  # choice: decoded mean may be this far from the ground truth's, of a range of 2
    alarm_variance: float = 0.25  # choice: decoded variance may fall to this fraction of the ground truth's

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, latent_weight=NOT_NEGATIVE, kl_weight=NOT_NEGATIVE, perceptual_weight=NOT_NEGATIVE)
        check(self, alarm_mean=NOT_NEGATIVE, alarm_variance=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class AdaptorConfig(RunConfig):
    """Stage 2: the adaptor's trunk and connectors, on top of a frozen prior and a frozen stage-1 encoder (a folder)."""

    encoder: str | None
    gt_latent: Literal["mode", "sample"] = "mode"  # choice: SDXL's posterior is so narrow that a sample adds a draw and no information
    conditioning_size_px: int = 1024  # choice: the size condition that the released inference always sets; the paper names none
    min_snr_gamma: float = 0.0  # choice: off, as the paper weights nothing; 5 is its authors' (Hang et al. 2023)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, min_snr_gamma=NOT_NEGATIVE, conditioning_size_px=COUNT)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How one global batch is cut. `per_worker` samples of a batch are one worker's, in `accumulation` passes of `micro_batch`."""

    world: int
    per_worker: int
    micro_batch: int
    accumulation: int


def batch_arithmetic(batch: BatchOptions, world: int) -> Arithmetic:
    """Cut the global batch into workers and passes; ValueError with what would divide."""
    size, micro, lanes = batch.global_batch, batch.micro_batch, batch.lanes
    if min(size, micro, lanes, world) < 1:
        raise ValueError(f"global batch {size}, micro batch {micro}, {lanes} lanes and {world} workers must all be 1 or more")
    if lanes % world:
        fit = [n for n in range(1, lanes + 1) if lanes % n == 0]
        raise ValueError(f"{lanes} lanes do not divide into {world} workers: choose launch.workers from {fit}, or change batch.lanes")
    if size % world:
        raise ValueError(f"global batch {size} does not divide into {world} workers: choose a multiple of {world}")
    if (size // world) % micro:
        fit = [n for n in range(1, size // world + 1) if (size // world) % n == 0]
        raise ValueError(
            f"global batch {size} does not divide into {world} workers x micro batch {micro} ({world * micro} a pass): "
            f"choose batch.micro_batch from {fit}"
        )
    return Arithmetic(world=world, per_worker=size // world, micro_batch=micro, accumulation=size // world // micro)


QUALITY_WORDS = {"none": "", "released": RELEASED_PROMPTS.positive, "paper": PAPER_PROMPTS.positive}
TINY_PRIOR = "priors/tiny"


def encoder_tiny() -> EncoderConfig:
    """Stage 1 for the demo: two CPU workers, under a minute."""
    return EncoderConfig(
        input="demo-output/corpus",
        output="demo-output/encoder",
        prior=TINY_PRIOR,
        network="tiny",
        steps=80,
        batch=_tiny_batch(),
        optimizer=OptimizerOptions(lr=1e-4, warmup_steps=5, lr_end_fraction=0.1),  # measured: docs/results/stage1.md, against 3e-4 and 1e-3
        checkpoint=CheckpointOptions(every_steps=20),
        validation=ValidationOptions(every_steps=20, images=8),
    )


def encoder_paper() -> EncoderConfig:
    """Stage 1 at the paper's size (the paper gives one set of figures for its training; it is taken for both stages)."""
    return EncoderConfig(
        input="s3://corpus/v1",
        output="s3://runs/encoder",
        prior="weights/sdxl",
        network="sdxl_paper",
        steps=20_000,  # choice: not stated
        precision="bf16",
        batch=_paper_batch(),
        optimizer=OptimizerOptions(lr=1e-5, warmup_steps=500),  # Sec. 4.1: AdamW, 1e-5
        launch=_paper_launch(),
        checkpoint=CheckpointOptions(every_steps=500, keep=3),
        validation=ValidationOptions(every_steps=500, images=16),
    )


def adaptor_tiny() -> AdaptorConfig:
    """Stage 2 for the demo: two CPU workers, under two minutes, negatives in the mixture."""
    return AdaptorConfig(
        input="demo-output/corpus",
        output="demo-output/adaptor",
        prior=TINY_PRIOR,
        encoder="demo-output/encoder/encoder",
        network="tiny",
        steps=120,
        negatives="demo-output/negatives",
        negatives_weight=0.1,  # choice: a short run must see some
        conditioning_size_px=128,
        batch=_tiny_batch(),
        optimizer=OptimizerOptions(lr=5e-4, warmup_steps=10, lr_end_fraction=0.1),  # choice: a small network, few steps
        checkpoint=CheckpointOptions(every_steps=30),
        validation=ValidationOptions(every_steps=60, restore_steps=4),
    )


def adaptor_paper() -> AdaptorConfig:
    """Stage 2 as in Sec. 4.1: 64 GPUs, batch 256, AdamW at 1e-5, 512 crops, half of the transformer blocks."""
    return AdaptorConfig(
        input="s3://corpus/v1",
        output="s3://runs/adaptor",
        prior="weights/sdxl",
        encoder="weights/encoder",
        network="sdxl_paper",
        steps=46_000,  # choice: not stated; what the nearest open relative trained for
        precision="bf16",
        negatives="s3://corpus/negatives",
        negatives_weight=0.005,  # 100 K of 20.17 M (Sec. 4.1): uniform over all samples
        faces="s3://corpus/faces",
        faces_weight=0.0035,  # 70 K of 20.17 M (Sec. 4.1): uniform over all samples
        batch=_paper_batch(),
        optimizer=OptimizerOptions(lr=1e-5, warmup_steps=500, ema_half_life_images=500_000),  # Sec. 4.1: lr; the rest choices
        launch=_paper_launch(),
        checkpoint=CheckpointOptions(every_steps=500, keep=3),
        validation=ValidationOptions(every_steps=500, images=16, restore_steps=20),
    )


def adaptor_zero_conv() -> AdaptorConfig:
    """Table 2c: zero convolutions instead of ZeroSFT."""
    return replace(adaptor_paper(), network="sdxl_paper_zero_conv", output="s3://runs/adaptor-zero-conv")


def adaptor_no_negatives() -> AdaptorConfig:
    """Table 2b: no negative samples in the mixture."""
    return replace(adaptor_paper(), negatives=None, negatives_weight=0.0, output="s3://runs/adaptor-no-negatives")


def adaptor_no_captions() -> AdaptorConfig:
    """The adaptor without text: every caption is dropped; negatives keep theirs."""
    paper = adaptor_paper()
    return replace(paper, batch=replace(paper.batch, caption_dropout=1.0), output="s3://runs/adaptor-no-captions")


def adaptor_data_85k() -> AdaptorConfig:
    """Fig. 12: as many images as LSDIR has, 85 K of the corpus's 20 M (the paper trained on LSDIR itself)."""
    return _on_part_of_the_data(85_000, "85k")


def adaptor_data_800() -> AdaptorConfig:
    """Fig. 12: as many images as DIV2K has, 800 of the corpus's 20 M (the paper trained on DIV2K itself)."""
    return _on_part_of_the_data(800, "800")


def _on_part_of_the_data(images: int, name: str) -> AdaptorConfig:
    paper = adaptor_paper()
    batch = replace(paper.batch, fraction=images / 20_000_000)  # Sec. 3.2: 20 million
    return replace(paper, batch=batch, output=f"s3://runs/adaptor-data-{name}")


def _tiny_batch() -> BatchOptions:
    # choice: what the tiny prior was trained on, 128 px crops of photographs scaled down
    return BatchOptions(global_batch=8, micro_batch=4, crop_px=128, short_side_px=192, lanes=4)


def _paper_batch() -> BatchOptions:
    # Sec. 4.1: 512 x 512 crops of 1024 x 1024 images, batch 256
    # no cache: a worker does not meet one of 20 M images twice while it could keep it
    return BatchOptions(global_batch=256, micro_batch=4, crop_px=512, short_side_px=1024, decode_threads=4, cache_mb=0)


def _paper_launch() -> LaunchOptions:
    return LaunchOptions(workers=64, gpus_per_worker=1, cpus_per_worker=6, restarts=50)  # Sec. 4.1: 64 GPUs


ENCODER_RECIPES: dict[str, Callable[[], EncoderConfig]] = {"tiny": encoder_tiny, "paper": encoder_paper}
ADAPTOR_RECIPES: dict[str, Callable[[], AdaptorConfig]] = {
    "tiny": adaptor_tiny,
    "paper": adaptor_paper,
    "zero_conv": adaptor_zero_conv,
    "no_negatives": adaptor_no_negatives,
    "no_captions": adaptor_no_captions,
    "data_85k": adaptor_data_85k,
    "data_800": adaptor_data_800,
}
