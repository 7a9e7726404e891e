"""Recipes of the restore job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.inputs_table import ShardLimits
from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from supir_model.presets import SamplingPreset, get_sampling

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """`input` is a dataset with images, or a picture, a folder, prefix or tar of them, which is ingested into `output` first.

    `prior` is a folder (ours, or SDXL in diffusers' layout); `encoder` and `adaptor` are folders that training wrote or a file
    in the official layout; none: the prior's own encoder, and no adaptor. `prompt` says what is in the pictures that have no
    caption file; None: the captioner looks. The quality words of `sampling` follow either.
    """

    input: str
    output: str
    prior: str
    encoder: str | None
    adaptor: str | None
    sampling: SamplingPreset
    captioner: FactsSettings | LlavaSettings
    precision: Precision = "fp32"
    device: str = "auto"
    upscale: float = 1.0
    longest_px: int = 0
    seed: int = 0
    prompt: str | None = None
    caption_files: bool = True  # <name>.txt beside a picture says what is in it
    pictures: bool = True  # also write <output>/pictures/<name>.png and the sheet before_after.png
    shard: ShardLimits = field(default_factory=lambda: ShardLimits(rows=1))  # choice: a picture takes seconds to minutes: commit each
    workers: WorkerOptions = field(default_factory=WorkerOptions)


def tiny() -> RestoreConfig:
    """The demo's network on small pictures."""
    return RestoreConfig(
        input="examples/low_quality",
        output="demo-output/restored",
        prior="priors/tiny",
        encoder="demo-output/encoder/encoder",
        adaptor="demo-output/adaptor/adaptor",
        sampling=get_sampling("tiny"),
        captioner=FactsSettings(),
        upscale=2.0,
        longest_px=256,  # choice: 512 px and 12 steps are what a laptop's core does in seconds
        workers=WorkerOptions(workers=2),
    )


def paper() -> RestoreConfig:
    """SDXL with what training/train_encoder.py and train_adaptor.py made of it, sampled as in Sec. 4.1."""
    return RestoreConfig(
        input="photos",
        output="restored",
        prior="weights/sdxl",
        encoder="weights/encoder",
        adaptor="weights/adaptor",
        sampling=get_sampling("paper"),
        captioner=LlavaSettings(model="llava-hf/llava-1.5-13b-hf"),
        precision="bf16",
        workers=WorkerOptions(workers=0, cpus=4, gpus=1),
    )


def release_quality() -> RestoreConfig:
    """The released demo's "Quality" settings; encoder and adaptor may be a file in the official layout."""
    return replace(paper(), sampling=get_sampling("release_quality"))


def release_fidelity() -> RestoreConfig:
    """The released demo's "Fidelity" settings."""
    return replace(paper(), sampling=get_sampling("release_fidelity"))


RECIPES: dict[str, Callable[[], RestoreConfig]] = {
    "tiny": tiny,
    "paper": paper,
    "release_quality": release_quality,
    "release_fidelity": release_fidelity,
}
