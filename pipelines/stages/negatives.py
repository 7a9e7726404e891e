"""Negative samples (Sec. 3.2, App. A.4): image to image half-way from a photograph, guided by words of bad quality.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result, TravelsAsFields
from pipelines.stages import captions
from pipelines.stages.captions import ClipTokens, seed_of
from pipelines.stages.memory import HalvedBatches
from pipelines.stages.pictures import Waiting, decoded_batches
from pipelines.stages.weights import local_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRENGTH = 0.5  # App. A.4
SEC_3_2 = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, over-smooth"  # Sec. 3.2
FIG_19 = "oil painting, cartoon, blurring, dirty, messy, low quality, frames, deformed, lowres, over-smooth"  # Fig. 19
MULTIPLE_PX = 32  # SDXL: the autoencoder shrinks 8 times, the UNet 4 times more
BLANK_STD = 1.0  # choice: of 255; no picture of anything varies as little
EQUAL_DIFFERENCE = 0.5  # choice: mean absolute difference of 255 below which nothing was done to the parent
CHANGED = "changed: image-to-image with a negative-quality prompt"

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("source_id", pa.string()), ("bytes", pa.binary()), ("format", pa.string()), ("width", pa.int32()),
    ("height", pa.int32()), ("orientation", pa.int8()), ("colour_profile", pa.string()), ("source_url", pa.string()),
    ("licence", pa.string()), ("licence_url", pa.string()), ("attribution", pa.string()), ("retrieved_at", pa.string()),
    ("parent_image_id", pa.string()), ("prompt", pa.string()), ("negative_prompt", pa.string()), ("strength", pa.float64()),
    ("seed", pa.int64()), ("steps", pa.int32()), ("guidance_scale", pa.float64())])
CARRIED = ("source_url", "licence", "licence_url", "retrieved_at")


@dataclass(frozen=True, kw_only=True)
class NegativeSettings:
    """How a negative sample is made. `steps` is the length of the schedule, of which the share `strength` is walked.

    Each sample draws one of `wordings` and, with probability `whole_share`, takes it whole, otherwise some of its terms.
    """

    size_px: int
    strength: float = STRENGTH
    steps: int = 50  # choice: not stated in the paper; SDXL's default
    guidance_scale: float = 7.5  # choice: not stated for negatives; the weight that the paper restores with
    negative_prompt: str = ""  # choice: nothing is wished away from bad quality
    wordings: tuple[str, ...] = (SEC_3_2, FIG_19)
    whole_share: float = 0.5  # choice: the whole text is what sampling uses; the subsets teach its single terms
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size_px < MULTIPLE_PX or self.size_px % MULTIPLE_PX:
            raise ValueError(f"negatives.size_px is {self.size_px}, expected a multiple of {MULTIPLE_PX}")
        if not 0 < self.strength <= 1 or int(self.steps * self.strength) < 1:
            raise ValueError(f"negatives: strength {self.strength} of {self.steps} steps walks none: expected strength in (0, 1] and "
                             "steps x strength of 1 or more")
        if not self.wordings or not all(self.terms(wording) for wording in self.wordings):
            raise ValueError("negatives.wordings holds an empty wording: expected terms with commas between them")

    @staticmethod
    def terms(wording: str) -> list[str]:
        """The terms of a wording."""
        return [term.strip() for term in wording.split(",") if term.strip()]

    def prompt_for(self, image_id: str) -> str:
        """The prompt of one parent: the same for the same image and seed, whatever else is made."""
        chance = random.Random(seed_of(image_id, f"negative prompt {self.seed}"))
        wording = chance.choice(self.wordings)
        terms = self.terms(wording)
        if len(terms) == 1 or chance.random() < self.whole_share:
            return wording
        kept = set(chance.sample(range(len(terms)), chance.randint(1, len(terms) - 1)))
        return ", ".join(term for i, term in enumerate(terms) if i in kept)

    def seed_for(self, image_id: str) -> int:
        """The seed of one parent's noise."""
        return seed_of(image_id, f"negative noise {self.seed}")


@dataclass(frozen=True, kw_only=True)
class NegativesStage(TravelsAsFields):
    """images -> images: makes a negative sample of every row that `params["parents"]` (source_ids) names.

    A sample depends on its parent, the settings and the weights alone. `weights` is the hash of the prior's folder.
    """

    name: ClassVar[str] = "negatives"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "images"
    row_id: ClassVar[str] = "source_id"
    keeps_rejected: ClassVar[bool] = False

    settings: NegativeSettings
    prior: str = field(metadata={"result": False})
    weights: str
    batch_size: int = field(default=1, metadata={"result": False})
    device: str = field(default="auto", metadata={"result": False})
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"  # auto: float16 on a GPU, float32 on a CPU

    @cached_property
    def painter(self) -> Painter:
        """The pipeline, loaded where it is used: it does not travel."""
        return Painter(self.prior, self.device, self.dtype, self.settings, self.weights)

    def setup(self) -> None:
        """Load the prior."""
        self.painter.load()

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Make the negatives of a slice of a shard of `images`."""
        images = rows["images"]
        parents = set(params["parents"])
        ids = images.column("source_id").to_pylist()
        outcomes = [Outcome(source_id, "rejected", "not_chosen") for source_id in ids if source_id not in parents]
        chosen = [row for row, source_id in enumerate(ids) if source_id in parents]
        made: list[dict[str, Any]] = []
        waiting, start = Waiting(), time.monotonic()
        for batch in decoded_batches(images, chosen, self.batch_size, self.row_id, self.fit, waiting):
            outcomes += batch.failed
            records = [images.slice(row, 1).drop_columns(["bytes"]).to_pylist()[0] for row in batch.rows]
            pictures = self.painter.paint(batch.pictures, [record["image_id"] for record in records])
            for record, parent, picture in zip(records, batch.pictures, pictures, strict=True):
                fault = find_fault(picture, parent)
                if fault:
                    outcomes.append(Outcome(record["source_id"], "rejected", fault[0], fault[1]))
                else:
                    made.append(self._row(record, picture))
        model_s = time.monotonic() - start - waiting.seconds
        counted = {"images": float(len(chosen)), "wait_s": waiting.seconds, "model_s": model_s} if chosen else {}
        return Result(pa.Table.from_pylist(made, schema=SCHEMA), outcomes, counted)

    def work(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> list[int]:
        """Positions of the parents."""
        parents = set(params["parents"])
        return [row for row, source_id in enumerate(rows["images"].column("source_id").to_pylist()) if source_id in parents]

    def amount(self, params: dict[str, Any]) -> int | None:
        """How many parents."""
        return len(params["parents"])

    def fit(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """The middle square of a photograph, at the size of the samples."""
        from supir_model.images import crop, resize_short_side

        return crop(resize_short_side(rgb_HWC, self.settings.size_px), self.settings.size_px)

    def _row(self, parent: dict[str, Any], picture_HWC: NDArray[Any]) -> dict[str, Any]:
        import numpy as np

        from supir_model.images import encode_png

        settings, parent_id = self.settings, parent["image_id"]
        data = encode_png(np.rint(picture_HWC * 255).astype(np.uint8))
        attribution = "; ".join(part for part in (parent["attribution"], CHANGED) if part)
        source_id = hashlib.sha256(f"negative {settings.seed} of {parent_id}".encode()).hexdigest()[:32]
        return {
            **{name: parent[name] for name in CARRIED}, "attribution": attribution,
            "image_id": hashlib.sha256(data).hexdigest(), "source_id": source_id, "bytes": data, "format": "PNG",
            "width": settings.size_px, "height": settings.size_px, "orientation": 1, "colour_profile": "",
            "parent_image_id": parent_id, "prompt": settings.prompt_for(parent_id), "negative_prompt": settings.negative_prompt,
            "strength": settings.strength, "seed": settings.seed_for(parent_id), "steps": settings.steps,
            "guidance_scale": settings.guidance_scale}


@dataclass
class Painter:
    """StableDiffusionXLImg2ImgPipeline over a folder of weights; the noise of each picture comes from a generator of its own."""

    prior: str
    device: str
    dtype: str
    settings: NegativeSettings
    weights: str = ""  # the hash that they must have
    memory: HalvedBatches = field(default_factory=HalvedBatches)
    pipeline: Any = None

    def load(self) -> None:
        """Load the weights. Raises ValueError that teaches for a folder that is not a prior or a GPU that is not there."""
        import torch

        from supir_model.prior import load_components

        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but this worker sees no GPU: set workers.gpus=1, or device=cpu")
        name = ("float16" if device.startswith("cuda") else "float32") if self.dtype == "auto" else self.dtype
        self.pipeline = load_components(local_folder(self.prior, self.weights), device, getattr(torch, name)).img2img()
        self.pipeline.set_progress_bar_config(disable=True)

    def paint(self, pictures: Sequence[NDArray[Any]], image_ids: Sequence[str]) -> list[NDArray[Any]]:
        """Float pictures (height x width x 3, 0 to 1, NaN where the network broke) from uint8 ones of one size."""
        return self.memory.run(len(pictures), lambda part: self._paint(pictures[part], image_ids[part]))

    def _paint(self, pictures: Sequence[NDArray[Any]], image_ids: Sequence[str]) -> list[NDArray[Any]]:
        import torch

        from supir_model.images import rgb_to_unit

        settings = self.settings
        generators = [torch.Generator().manual_seed(settings.seed_for(image_id)) for image_id in image_ids]
        with torch.inference_mode(), one_thread():
            made_BCHW = self.pipeline(
                prompt=[settings.prompt_for(image_id) for image_id in image_ids],
                negative_prompt=[settings.negative_prompt] * len(pictures), image=rgb_to_unit(list(pictures)),
                strength=settings.strength, num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale,
                generator=generators, output_type="pt").images
        return list(made_BCHW.float().cpu().permute(0, 2, 3, 1).numpy())


@contextmanager
def one_thread() -> Iterator[None]:
    """On a CPU the order of a sum, and with it the last bit of a picture, depends on the number of threads: use one.

    measured: with 1 thread and with 2, one random sample of three differed in its bytes. Use more workers, not wider ones.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_fault(picture_HWC: NDArray[Any], parent_HWC: NDArray[Any]) -> tuple[str, str] | None:
    """(reason, detail) of a sample (0 to 1) that cannot teach anything beside its parent (uint8), or None.

    Codes: not_a_number, blank (black, or of one colour), equal_to_parent.
    """
    import numpy as np

    broken = int(np.count_nonzero(~np.isfinite(picture_HWC)))
    if broken:
        return "not_a_number", f"{broken} of {picture_HWC.size} values"
    spread = float(picture_HWC.std()) * 255
    if spread < BLANK_STD:
        return "blank", f"mean {float(picture_HWC.mean()) * 255:.1f}, standard deviation {spread:.2f} of 255"
    difference = float(np.abs(picture_HWC * 255 - parent_HWC).mean())
    if difference < EQUAL_DIFFERENCE:
        return "equal_to_parent", f"mean difference {difference:.3f} of 255"
    return None


@dataclass(frozen=True, kw_only=True)
class PromptsAsCaptions(TravelsAsFields):
    """images -> captions of a dataset of negatives: the caption of a sample is the prompt that made it (Sec. 4.1)."""

    name: ClassVar[str] = "negative_captions"
    version: ClassVar[int] = 2
    table: ClassVar[str] = "captions"
    row_id: ClassVar[str] = "source_id"
    keeps_rejected: ClassVar[bool] = False

    model: str
    weights: str
    clip_tokenizer: str | None = field(default=None, metadata={"result": False})
    clip_vocabulary: str = ""

    @cached_property
    def count_tokens(self) -> ClipTokens | None:
        """Counts CLIP's tokens, if a tokenizer was given."""
        return ClipTokens(self.clip_tokenizer, self.clip_vocabulary) if self.clip_tokenizer else None

    def setup(self) -> None:
        """Load the tokenizer."""
        assert self.count_tokens is None or self.count_tokens("a photograph") > 0, "the tokenizer counts nothing"

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """One caption a row."""
        made = rows["images"].select(["image_id", "prompt", "seed"]).to_pylist()
        said = [{"image_id": row["image_id"], "caption": row["prompt"], "engine": "prompt", "model": self.model, "revision": self.weights,
                 "prompt": row["prompt"], "decoding": f"seed {row['seed']}", "finish_reason": "stop", "verdict": "ok", "agreement": None,
                 "clip_tokens": self.count_tokens(row["prompt"]) if self.count_tokens else None, "seen": ""} for row in made]
        return Result(pa.Table.from_pylist(said, schema=captions.SCHEMA))
