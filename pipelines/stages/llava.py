"""LLaVA-1.5 through transformers: the captioner of the paper (Sec. 3.2), batched, and the same words for the same picture in any batch.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stages.captioner import Asked, Canary, Captioned, Identity, InOrder, Refused, known_picture
from pipelines.stages.weights import identity, is_local, local_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUESTION = "Describe this image and its style in a very detailed manner."  # App. A.2 and released code
# The conversation template vicuna_v1, which LLaVA-1.5 was trained with.
VICUNA_V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
             "answers to the user's questions. USER: <image>\n{question} ASSISTANT:")
MAX_NEW_TOKENS = 512  # released code
IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How words are chosen: greedily at temperature 0, otherwise by nucleus sampling (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"decoding: temperature {self.temperature}, top_p {self.top_p}: expected temperature >= 0 and 0 < top_p <= 1")

    def describe(self, seed: int) -> str:
        """For the row: what is needed to decode in the same way again."""
        return f"temperature {self.temperature}, top_p {self.top_p}, seed {seed}" if self.temperature else "greedy"


GREEDY = Decoding()
REASK = Decoding(temperature=0.7, top_p=0.9)  # choice: greedy decoding would only repeat its fault
RELEASED_SAMPLING = Decoding(temperature=0.2, top_p=0.7)  # released code


@dataclass(frozen=True, kw_only=True)
class LlavaSettings:
    """What to load and how to ask. `model` is a folder (hashed into the version of the table) or a hub id (`owner/name`).

    `fit` says how a picture becomes the square that the vision tower sees: padded with the mean colour, as LLaVA-1.5 was
    trained, or cut to its middle, as the published processor does. `canary` makes a worker prove that the model looks.
    """

    engine: str = "llava"
    model: str = field(metadata={"result": False})
    revision: str | None = None
    question: str = QUESTION
    template: str = VICUNA_V1
    max_new_tokens: int = MAX_NEW_TOKENS
    decoding: Decoding = GREEDY  # choice: a corpus caption can be made again
    reask: Decoding = REASK
    fit: Literal["pad", "crop"] = "pad"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    device: str = field(default="auto", metadata={"result": False})
    canary: bool = field(default=True, metadata={"result": False})

    def __post_init__(self) -> None:
        if IMAGE_MARK in self.question:
            raise ValueError(f"captioner.question contains {IMAGE_MARK!r}, which marks the picture's place: leave it to the template")
        if self.template.count(IMAGE_MARK) != 1 or "{question}" not in self.template:
            raise ValueError(f"captioner.template has to contain {IMAGE_MARK} once, and {{question}}; found {self.template!r}")
        if self.max_new_tokens < 1:
            raise ValueError(f"captioner.max_new_tokens is {self.max_new_tokens}, expected 1 or more")

    @property
    def prompt(self) -> str:
        """The whole text that the model reads, with the mark where the picture goes."""
        return self.template.replace("{question}", self.question)

    def weights(self) -> str:
        """What names the weights: the hash of the folder, or the hub's id and revision."""
        return identity(self.model, self.revision)

    def build(self, weights: str = "", batch_size: int = 8) -> LlavaCaptioner:
        """The captioner; `weights` is the hash of a local folder, `batch_size` how many captions are written at a time."""
        return LlavaCaptioner(self, weights, batch_size)


class LlavaCaptioner(InOrder):
    """LlavaForConditionalGeneration and its processor behind the captioner's seam."""

    def __init__(self, settings: LlavaSettings, weights: str = "", batch_size: int = 8) -> None:
        self.settings = settings
        self.weights = weights
        self.batch_size = batch_size

    @property
    def identity(self) -> Identity:
        """A folder is known by its last name and its hash, a hub's model by its id and commit."""
        address = self.settings.model
        if is_local(address):
            return Identity(engine="llava", model=address.rstrip("/").rsplit("/", 1)[-1], revision=self.weights)
        commit = getattr(self.model.config, "_commit_hash", None)
        return Identity(engine="llava", model=address, revision=str(commit or self.settings.revision or ""))

    def load(self) -> None:
        """Load model and processor, and prove that they belong together and that the model looks at pictures."""
        import torch

        wanted = self.settings.device
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"captioner.device is {wanted!r}, but this worker sees no GPU: ask for one with --set workers.gpus=1, or "
                             "set captioner.device=cpu")
        name = ("bfloat16" if self.device.startswith("cuda") else "float32") if self.settings.dtype == "auto" else self.settings.dtype
        self.dtype = getattr(torch, name)
        self.processor, self.model = load_llava(self.settings.model, self.settings.revision, self.device, self.dtype)
        self.side_px = _side_px(self.processor.image_processor)
        self._check_image_tokens()
        from pipelines.stages.llava_decoder import RollingDecoder

        ends = _end_tokens(self.model, self.processor.tokenizer)
        self.decoder = RollingDecoder(self.model, ends, self.settings.max_new_tokens, self.batch_size)
        self.canary = Canary(self.side_px)
        self.prove()

    def prove(self) -> None:
        """A blank picture and a landscape give different captions, and the same ones alone, together, and at every later time."""
        if self.settings.canary:
            self.canary.check(self, self.settings.model)

    def prepare(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """The square that the vision tower sees. A picture that is that square already stays as it is."""
        from supir_model.images import crop, resize_short_side

        if rgb_HWC.shape[:2] == (self.side_px, self.side_px):
            return rgb_HWC
        if self.settings.fit == "crop":
            return crop(resize_short_side(rgb_HWC, self.side_px), self.side_px)
        return squared(rgb_HWC, self.side_px, self.processor.image_processor.image_mean)

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned | Refused]]:
        """Captions as they end: a finished row leaves the batch and the next picture takes its place."""
        from pipelines.stages.llava_decoder import Job

        def jobs() -> Iterator[Job]:
            for one in asked:
                yield Job(ticket=one, inputs=self._inputs([self.prepare(one.picture_HWC)]), decoding=self._decoding(one), seed=one.seed)

        for job, tokens, ended in self.decoder.run(jobs()):
            one: Asked = job.ticket
            text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            yield one, Captioned(text=" ".join(text.split()), finish_reason="stop" if ended else "length", prompt=self.settings.prompt,
                                 decoding=self._decoding(one).describe(one.seed), tokens=len(tokens))

    def _decoding(self, one: Asked) -> Decoding:
        return self.settings.reask if one.attempt and not self.settings.decoding.temperature else self.settings.decoding

    def _inputs(self, pictures: Sequence[NDArray[Any]]) -> dict[str, Any]:
        inputs = self.processor(images=list(pictures), text=[self.settings.prompt] * len(pictures), padding=True, return_tensors="pt")
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        return moved | {"pixel_values": moved["pixel_values"].to(self.dtype)}

    def _check_image_tokens(self) -> None:
        import torch

        with torch.inference_mode():
            inputs = self._inputs([known_picture(self.side_px)])
            marks = int((inputs["input_ids"] == self.model.config.image_token_id).sum())
            features = self.model.get_image_features(inputs["pixel_values"])
        made = features.pooler_output if hasattr(features, "pooler_output") else features
        given = int(made[0].reshape(-1, made[0].shape[-1]).shape[0])
        if marks != given:
            raise ValueError(f"the processor of {self.settings.model} leaves {marks} places for a picture, the model fills {given}: "
                             "they do not belong together; use the processor that was saved with the model")


def load_llava(address: str, revision: str | None, device: str, dtype: Any) -> tuple[Any, Any]:
    """(processor, model) from a folder or a hub id. Raises ValueError that teaches for another kind of model or missing weights."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor

    local = is_local(address)
    source, options = (local_folder(address), {"local_files_only": True}) if local else (address, {"revision": revision})
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type != "llava":
            raise ValueError(f"{address} is a model of type {config.model_type!r}, expected 'llava' (LLaVA-1.5)")
        processor = LlavaProcessor.from_pretrained(source, backend="pil", **options)  # the same pixels with and without a GPU
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:  # what transformers raises for missing, foreign or cut files
        where = "is its folder complete?" if local else "is the id right, and can this machine reach the hub or its cache?"
        raise ValueError(f"{address} cannot be loaded as LLaVA ({type(error).__name__}: {error}): {where}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{address} lacks {len(missing)} of the model's weights (first: {missing[0]}): it would speak at random; use a "
                         "complete folder")
    processor.tokenizer.padding_side = "left"  # a decoder continues at the right end
    return processor, model.to(device).eval()


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
