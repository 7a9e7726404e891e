"""The network that restores, as stages hold it: which weights, how they sample, and one picture from bytes to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipelines.stages.captions import seed_of
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from pipelines.stages.weights import ROOT, looked_from
from supir_model.presets import SamplingPreset


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Folders (or official files) of prior, encoder and adaptor. Their hashes decide what comes out, their places do not."""

    prior: str = field(metadata={"result": False})
    encoder: str | None = field(default=None, metadata={"result": False})  # None: the prior's own
    adaptor: str | None = field(default=None, metadata={"result": False})  # None: the prior alone, pulled to the input
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = field(default="auto", metadata={"result": False})
    hashes: tuple[str, str, str] = ("", "", "")

    def identified(self) -> Weights:
        """The same weights with the hashes of their files, and places that workers find too. Raises ValueError where one is missing."""
        places = [self.prior, self.encoder, self.adaptor]
        prior, encoder, adaptor = (place and _findable(place) for place in places)
        assert prior is not None, "a prior is always given"
        first, second, third = (_hash(place) if place else "" for place in (prior, encoder, adaptor))
        return replace(self, prior=prior, encoder=encoder, adaptor=adaptor, hashes=(first, second, third))


@dataclass(frozen=True, kw_only=True)
class RestorerSettings:
    """Everything that decides how a picture is restored, beside the picture."""

    weights: Weights
    sampling: SamplingPreset
    captioner: FactsSettings | LlavaSettings
    captioner_weights: str = ""
    seed: int = 0

    def identified(self) -> RestorerSettings:
        """With the hashes of all weights."""
        return replace(self, weights=self.weights.identified(), captioner_weights=self.captioner.weights())

    def build(self) -> PictureRestorer:
        """The networks, loaded where this is called."""
        return PictureRestorer(self)


@dataclass(frozen=True, kw_only=True)
class RestoredPicture:
    """Pictures are uint8 RGB; `prompt` is the whole positive text that was sampled under."""

    restored_HWC: Any
    stage1_HWC: Any
    caption: str
    prompt: str
    seed: int


class PictureRestorer:
    """Encoder, caption, restoration-guided sampling, decoder, colour fix (Fig. 2 of the paper, test time)."""

    def __init__(self, settings: RestorerSettings) -> None:
        import torch

        from supir_model.weights import load_restorer

        weights = settings.weights
        device = ("cuda" if torch.cuda.is_available() else "cpu") if weights.device == "auto" else weights.device
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[weights.precision]
        places = [place and str(_readable(place)) for place in (weights.prior, weights.encoder, weights.adaptor)]
        self.settings = settings
        self._restorer = load_restorer(str(places[0]), encoder=places[1], adaptor=places[2], device=device, dtype=dtype)
        self._device = torch.device(device)

    @cached_property
    def _captioner(self) -> Any:
        captioner = self.settings.captioner.build(self.settings.captioner_weights)
        captioner.load()
        return captioner

    def restore(
        self, pictures: Sequence[Any], image_ids: Sequence[str], upscale: float = 1.0, prompts: Sequence[str] | None = None
    ) -> list[RestoredPicture]:
        """Restore pictures of one size (uint8 RGB), `upscale` times as large. A picture's result does not depend on the others'.

        `prompts` say what is in them (the quality words come on top); None: the captioner is asked, who sees the stage-1 pictures.
        Chance is decided by (image_id, seed), so the same picture is restored the same way in any shard.
        """
        import torch

        from supir_model.preprocess import from_network, plan_sizes, to_network
        from supir_model.restore import restore, stage1

        sampling = self.settings.sampling
        height, width = pictures[0].shape[:2]
        sizes = plan_sizes(height, width, upscale=upscale, min_size_px=sampling.min_size_px, multiple_px=sampling.multiple_px)
        x_lq_BCHW = torch.cat([to_network(picture, sizes) for picture in pictures]).to(self._device)
        first = stage1(self._restorer, x_lq_BCHW, sampling)
        stage1_BHWC = from_network(first.x_BCHW, sizes)
        seeds = [seed_of(image_id, f"restore {self.settings.seed}") for image_id in image_ids]
        captions = list(prompts) if prompts else self._describe(list(stage1_BHWC), seeds)
        texts = [sampling.prompts.around(caption) for caption in captions]
        negatives = [sampling.prompts.negative] * len(texts)
        result = restore(self._restorer, x_lq_BCHW, texts, negatives, sampling, seeds, first=first)
        restored_BHWC = from_network(result.x_BCHW, sizes)
        return [
            RestoredPicture(restored_HWC=restored, stage1_HWC=first, caption=caption, prompt=prompt, seed=seed)
            for restored, first, caption, prompt, seed in zip(restored_BHWC, stage1_BHWC, captions, texts, seeds, strict=True)
        ]

    def _describe(self, pictures: list[Any], seeds: list[int]) -> list[str]:
        prepared = [self._captioner.prepare(picture) for picture in pictures]
        return [said.text for said in self._captioner.describe(prepared, seeds)]


def _findable(place: str) -> str:
    """A place that workers find: relative to the repository if it lies in it (each node has a copy), else absolute."""
    path = _readable(place)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _readable(place: str) -> Path:
    for path in (Path(place).expanduser(), ROOT / place):
        if path.exists():
            return path.resolve()
    raise ValueError(f"no weights at {place!r} ({looked_from()}): pass a folder, or a file in the official layout")


def _hash(place: str) -> str:
    from infra.stores import hash_weights

    return hash_weights(str(_readable(place)))
