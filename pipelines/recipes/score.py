"""Recipes of the score job: one for each row of Table 1, all of them together, and the demo's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from infra.holdout import HELD_OUT_EVERY
from pipelines.recipes.restore import Precision
from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from supir_model.presets import SamplingPreset, get_sampling

# Table 1; the names of supir_model.degradation.TABLE1, whose package imports torch (a test holds them equal)
TABLE1 = ("x4", "x8", "blur2_x4", "x4_noise40", "blur2_x4_noise20_jpeg50")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`input` is a dataset with images, of which accepted and held-out ones are scored; `<output>/<degradation>` are datasets.

    `holdout_every` must be what training left out (infra.holdout); 0 scores every image, for a corpus that is no training's.
    """

    input: str
    output: str
    degradations: tuple[str, ...]
    size_px: int
    prior: str
    encoder: str | None
    adaptor: str | None
    sampling: SamplingPreset
    captioner: FactsSettings | LlavaSettings
    precision: Precision = "fp32"
    device: str = "auto"
    holdout_every: int = HELD_OUT_EVERY
    seed: int = 0
    batch_size: int = 1
    workers: WorkerOptions = field(default_factory=WorkerOptions)


def tiny() -> ScoreConfig:
    """The demo's network on what examples/ holds out, under the degradation that it was trained on."""
    return ScoreConfig(
        input="demo-output/corpus",
        output="demo-output/scored",
        degradations=("real_esrgan",),
        size_px=192,  # choice: the short side that the tiny network's training shrinks photographs to
        prior="priors/tiny",
        encoder="demo-output/encoder/encoder",
        adaptor="demo-output/adaptor/adaptor",
        sampling=get_sampling("tiny"),
        captioner=FactsSettings(),
        workers=WorkerOptions(workers=2),
    )


def table1(*degradations: str) -> ScoreConfig:
    """Synthetic test degradations of Table 1 at 512 pixels, on a dataset of test photographs of its own, all of them."""
    return ScoreConfig(
        input="s3://testset/v1",
        output="s3://scores/table1",
        degradations=degradations or TABLE1,
        size_px=512,
        prior="weights/sdxl",
        encoder="weights/encoder",
        adaptor="weights/adaptor",
        sampling=get_sampling("paper"),
        captioner=LlavaSettings(model="llava-hf/llava-1.5-13b-hf"),
        precision="bf16",
        holdout_every=0,
        batch_size=4,
        workers=WorkerOptions(workers=0, cpus=4, gpus=1),
    )


def no_guidance() -> ScoreConfig:
    """Table 1 without restoration guidance: nothing pulls the samples to the input (Sec. 3.3)."""
    whole = table1()
    return replace(whole, output="s3://scores/table1-no-guidance", sampling=replace(whole.sampling, restore_cfg=-1.0))


RECIPES: dict[str, Callable[[], ScoreConfig]] = {
    "tiny": tiny,
    "table1": table1,
    "table1_no_guidance": no_guidance,
    **{f"table1_{name}": partial(table1, name) for name in TABLE1},
}
