"""Recipes of the caption job. Each is the whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipelines.runtime.cluster import WorkerOptions
from pipelines.stages.agreement import AgreementSettings
from pipelines.stages.asking import RELEASED_SAMPLING
from pipelines.stages.caption_checks import CheckSettings
from pipelines.stages.endpoint import EndpointSettings
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from pipelines.stages.reject_band import RejectBand
from pipelines.stages.views import SeenSettings

CLIP_TOKENIZER = "priors/tiny/tokenizer"  # CLIP's own vocabulary, which ships with the repository


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """`input` is a dataset with images and selections; captions are written beside them.

    `clip_tokenizer` is a folder with CLIP's tokenizer, which counts the tokens of each caption (None: not counted).
    `selected_only` false captions every image and needs no selections. `seen` is what the captioner is shown, `agreement` whether a
    CLIP has to find that captions fit. A reject rate outside of `band` stops the job.
    `calibrate` (with --dry-run): rows that one worker does for the estimate of time and cost; 0: no estimate.
    """

    input: str
    captioner: FactsSettings | LlavaSettings | EndpointSettings
    checks: CheckSettings = field(default_factory=CheckSettings)
    seen: SeenSettings = field(default_factory=SeenSettings)
    agreement: AgreementSettings = field(default_factory=AgreementSettings)
    band: RejectBand = field(default_factory=RejectBand)
    batch_size: int
    clip_tokenizer: str | None = None
    selected_only: bool = True
    calibrate: int = 0
    sample_pictures: int = 50  # captions beside their pictures in the tracked run
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected 1 or more")
        if self.calibrate < 0:
            raise ValueError(f"calibrate is {self.calibrate}, expected the number of rows to try, or 0")


def tiny() -> CaptionConfig:
    """What can be measured, in words: needs no weights."""
    return CaptionConfig(input="demo-output/corpus", captioner=FactsSettings(), checks=CheckSettings(reasks=0), batch_size=8,
                         clip_tokenizer=CLIP_TOKENIZER)


def llava_13b() -> CaptionConfig:
    """The paper's captioner (Sec. 3.2) on every GPU of the cluster, greedy, so that a caption can be made again."""
    return CaptionConfig(input="s3://corpus/v1", captioner=LlavaSettings(model="llava-hf/llava-1.5-13b-hf"),
                         batch_size=16,  # choice: 26 GB of weights and 16 caches of 1200 tokens (16 GB) fit 48 GB
                         clip_tokenizer=CLIP_TOKENIZER, workers=WorkerOptions(workers=0, cpus=4, gpus=1))


def llava_7b() -> CaptionConfig:
    """The smaller sibling, for GPUs of 24 GB."""
    return replace(llava_13b(), captioner=LlavaSettings(model="llava-hf/llava-1.5-7b-hf"), batch_size=8)


def llava_13b_released() -> CaptionConfig:
    """As the released code decodes: temperature 0.2, top-p 0.7; drawn from a seed of the image, so it too can be made again."""
    return replace(llava_13b(), captioner=LlavaSettings(model="llava-hf/llava-1.5-13b-hf", decoding=RELEASED_SAMPLING))


def llava_next() -> CaptionConfig:
    """LLaVA-NeXT (1.6), which sees up to five times as many pixels, in tiles."""
    return replace(llava_13b(), captioner=LlavaSettings(model="llava-hf/llava-v1.6-vicuna-13b-hf"),
                   batch_size=4)  # choice: 26 GB of weights and four caches of 3500 tokens (12 GB) fit 48 GB


def llava_onevision() -> CaptionConfig:
    """LLaVA-OneVision with Qwen2-7B, whose keys and values are a fourteenth of LLaVA-1.5-13B's."""
    return replace(llava_13b(), captioner=LlavaSettings(model="llava-hf/llava-onevision-qwen2-7b-ov-hf"),
                   batch_size=8)  # choice: 16 GB of weights, and tiles of eight pictures in the tower at a time, fit 48 GB


def llava_13b_4bit() -> CaptionConfig:
    """The paper's captioner with its language model in 4 bits, for GPUs of 24 GB. Untried: no GPU was at hand."""
    return replace(llava_13b(), captioner=LlavaSettings(model="llava-hf/llava-1.5-13b-hf", quantized="4bit"), batch_size=8)


def endpoint() -> CaptionConfig:
    """Servers that you run (vLLM, SGLang, `transformers serve`): --set 'captioner.urls=["http://gpu-1:8000/v1"]' names them."""
    return CaptionConfig(input="s3://corpus/v1",
                         captioner=EndpointSettings(urls=("http://127.0.0.1:8000/v1",), model="llava-hf/llava-1.5-13b-hf"),
                         batch_size=32,  # choice: pictures that are decoded ahead
                         clip_tokenizer=CLIP_TOKENIZER, workers=WorkerOptions(workers=2, cpus=2))


RECIPES = {"tiny": tiny, "llava_13b": llava_13b, "llava_7b": llava_7b, "llava_13b_released": llava_13b_released,
           "llava_13b_4bit": llava_13b_4bit, "llava_next": llava_next, "llava_onevision": llava_onevision, "endpoint": endpoint}
