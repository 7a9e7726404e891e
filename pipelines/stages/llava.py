"""LLaVA through transformers: the captioner of the paper (Sec. 3.2) and its successors, and the same words for the same picture in any
batch.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stages.asking import GREEDY, IMAGE_MARK, MAX_NEW_TOKENS, QUESTION, REASK, Decoding
from pipelines.stages.captioner import Asked, Canary, Captioned, Identity, InOrder, Refused
from pipelines.stages.llava_loading import Quantized, check_image_tokens, load_llava, prompt_of
from pipelines.stages.weights import identity, is_local, local_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

@dataclass(frozen=True, kw_only=True)
class LlavaSettings:
    """What to load and how to ask. `model` is a folder here or on S3 (hashed into the version of the table) or a hub id (`owner/name`) of
    LLaVA-1.5, LLaVA-NeXT (1.6) or LLaVA-OneVision.

    `template` `auto`: the paper's conversation for LLaVA-1.5, the processor's own for the others. `fit` says how LLaVA-1.5 gets its
    square: padded with the mean colour, as it was trained, or cut to the middle, as the published processor does; the others read
    pictures of any shape in tiles. `quantized` keeps the language model's weights in 8 or 4 bits (bitsandbytes, CUDA). `canary` makes a
    worker prove that the model looks.
    """

    engine: str = "llava"
    model: str = field(metadata={"result": False})
    revision: str | None = None
    question: str = QUESTION
    template: str = "auto"
    max_new_tokens: int = MAX_NEW_TOKENS
    decoding: Decoding = GREEDY  # choice: a corpus caption can be made again
    reask: Decoding = REASK
    fit: Literal["pad", "crop"] = "pad"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    quantized: Quantized = "none"
    device: str = field(default="auto", metadata={"result": False})
    canary: bool = field(default=True, metadata={"result": False})

    def __post_init__(self) -> None:
        if IMAGE_MARK in self.question:
            raise ValueError(f"captioner.question contains {IMAGE_MARK!r}, which marks the picture's place: leave it to the template")
        if self.template != "auto" and (self.template.count(IMAGE_MARK) != 1 or "{question}" not in self.template):
            raise ValueError(f"captioner.template has to be auto, or contain {IMAGE_MARK} once, and {{question}}; found {self.template!r}")
        if self.max_new_tokens < 1:
            raise ValueError(f"captioner.max_new_tokens is {self.max_new_tokens}, expected 1 or more")

    def weights(self) -> str:
        """What names the weights: the hash of the folder, or the hub's id and revision."""
        return identity(self.model, self.revision)

    def build(self, weights: str = "", batch_size: int = 8) -> LlavaCaptioner:
        """The captioner; `weights` is the hash of a local folder, `batch_size` how many captions are written at a time."""
        return LlavaCaptioner(self, weights, batch_size)


@dataclass(frozen=True)
class Prepared:
    """A picture as the model's inputs, one row, on the CPU."""

    inputs: dict[str, Any]


class LlavaCaptioner(InOrder):
    """A LLaVA and its processor behind the captioner's seam."""

    def __init__(self, settings: LlavaSettings, weights: str = "", batch_size: int = 8) -> None:
        self.settings = settings
        self.weights = weights
        self.batch_size = batch_size
        self._processors: SimpleQueue[Any] = SimpleQueue()

    @property
    def identity(self) -> Identity:
        """A folder is known by its last name and its hash, a hub's model by its id and commit."""
        address = self.settings.model
        if is_local(address):
            return Identity(engine="llava", model=address.rstrip("/").rsplit("/", 1)[-1], revision=self.weights)
        return Identity(engine="llava", model=address, revision=self._commit)

    def load(self) -> None:
        """Load model and processor, and prove that they belong together and that the model looks at pictures."""
        import torch

        from pipelines.stages.llava_decoder import RollingDecoder

        wanted = self.settings.device
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"captioner.device is {wanted!r}, but this worker sees no GPU: ask for one with --set workers.gpus=1, or "
                             "set captioner.device=cpu")
        name = ("bfloat16" if self.device.startswith("cuda") else "float32") if self.settings.dtype == "auto" else self.settings.dtype
        self.dtype = getattr(torch, name)
        folder = local_model(self.settings.model, self.settings.revision, self.weights)
        self.processor, self.model = load_llava(self.settings.model, folder, self.device, self.dtype, self.settings.quantized)
        self._commit = self.model.config.name_or_path.rstrip("/").rsplit("/", 1)[-1]  # the hub's cache names a folder by its commit
        self.any_shape = self.model.config.model_type != "llava"
        self.side_px = _side_px(self.processor.image_processor)
        self.prompt = prompt_of(self.settings.model, self.settings.template, self.settings.question, self.model, self.processor)
        ends = _end_tokens(self.model, self.processor.tokenizer)
        self.decoder = RollingDecoder(self.model, ends, self.settings.max_new_tokens, self.batch_size)
        self.canary = Canary(self.side_px)
        self.prove()

    def prove(self) -> None:
        """The processor leaves the places that the model fills; a blank picture and a landscape give different captions, and the same ones
        alone, together, and at every later time."""
        check_image_tokens(self.settings.model, lambda picture: self._on_device(self.prepare(picture)), self.model, self.side_px)
        if self.settings.canary:
            self.canary.check(self, self.settings.model)

    def fit(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """What the processor is given: LLaVA-1.5's square; the picture itself for models that read any shape."""
        from supir_model.images import crop, resize_short_side

        if self.any_shape or rgb_HWC.shape[:2] == (self.side_px, self.side_px):
            return rgb_HWC
        if self.settings.fit == "crop":
            return crop(resize_short_side(rgb_HWC, self.side_px), self.side_px)
        return squared(rgb_HWC, self.side_px, self.processor.image_processor.image_mean)

    def prepare(self, picture: NDArray[Any] | Prepared) -> Prepared:
        """Resized, cut into tiles, normalised, with its prompt: all that threads can do ahead. What is prepared stays as it is."""
        if isinstance(picture, Prepared):
            return picture
        with self._a_processor() as processor:
            inputs = processor(images=[self.fit(picture)], text=[self.prompt], return_tensors="pt",
                               input_data_format="channels_last")  # it would take three rows of pixels for three channels
        return Prepared({name: value.to(self.dtype) if name == "pixel_values" else value for name, value in inputs.items()})

    @contextmanager
    def _a_processor(self) -> Iterator[Any]:
        """A processor for one thread at a time: tokenizers refuse to be used by two."""
        try:
            processor = self._processors.get_nowait()
        except Empty:
            processor = copy.deepcopy(self.processor)
        yield processor
        self._processors.put(processor)

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned | Refused]]:
        """Captions as they end: a finished row leaves the batch and the next picture takes its place."""
        from pipelines.stages.llava_decoder import Job

        def jobs() -> Iterator[Job]:
            for one in asked:
                inputs = self._on_device(self.prepare(one.picture_HWC))
                yield Job(ticket=one, inputs=inputs, decoding=self._decoding(one), seed=one.seed)

        for job, tokens, ended in self.decoder.run(jobs()):
            one: Asked = job.ticket
            text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            yield one, Captioned(text=" ".join(text.split()), finish_reason="stop" if ended else "length", prompt=self.prompt,
                                 decoding=self._decoding(one).describe(one.seed), tokens=len(tokens))

    def _decoding(self, one: Asked) -> Decoding:
        return self.settings.reask if one.attempt and not self.settings.decoding.temperature else self.settings.decoding

    def _on_device(self, prepared: Prepared) -> dict[str, Any]:
        return {name: value.to(self.device) for name, value in prepared.inputs.items()}


def padded(rgb_HWC: NDArray[Any], mean_C: Sequence[float]) -> NDArray[Any]:
    """The picture in the middle of a square of the mean colour (each of `mean_C` in 0 .. 1)."""
    import numpy as np

    height, width = rgb_HWC.shape[:2]
    side = max(height, width)
    square_HWC = np.empty((side, side, 3), np.uint8)
    square_HWC[:] = [int(mean * 255) for mean in mean_C]
    top, left = (side - height) // 2, (side - width) // 2
    square_HWC[top:top + height, left:left + width] = rgb_HWC
    return square_HWC


def squared(rgb_HWC: NDArray[Any], side_px: int, mean_C: Sequence[float]) -> NDArray[Any]:
    """The whole picture in a square of `side_px`, padded with the mean colour; one that is that square already stays as it is."""
    from supir_model.images import resize

    return rgb_HWC if rgb_HWC.shape[:2] == (side_px, side_px) else resize(padded(rgb_HWC, mean_C), side_px, side_px)


def _side_px(image_processor: Any) -> int:
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    return int(size["height"])


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [int(end) for end in ends] if isinstance(ends, list) else [int(ends)]
