"""Does a caption fit its picture? The cosine between CLIP's embeddings of the two (CLIPScore, Hessel et al. 2021, without its factor)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipelines.stages.caption_checks import SHOWN_CHARS, Fault
from pipelines.stages.weights import folder_identity, local_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGITS = 3  # of the column: the last bits depend on the number of threads


@dataclass(frozen=True, kw_only=True)
class AgreementSettings:
    """`clip` is a folder (here or on S3) with a CLIP in transformers' layout; None: agreement is not measured.

    A caption below `lowest` (cosine, -1 to 1) has the fault `disagrees`. CLIP reads the first 77 tokens of it. `weights` is the hash of
    the folder.
    """

    clip: str | None = field(default=None, metadata={"result": False})
    lowest: float = 0.15  # choice: LAION kept pairs above 0.28 (ViT-B/32), unrelated ones are near 0.1; not tried on trained weights
    device: str = field(default="auto", metadata={"result": False})
    weights: str = ""

    def __post_init__(self) -> None:
        if not -1 <= self.lowest <= 1:
            raise ValueError(f"agreement.lowest is {self.lowest}, expected a cosine, -1 to 1")

    def identified(self) -> AgreementSettings:
        """With the hash of the weights. Raises ValueError where they are missing."""
        return replace(self, weights=folder_identity(self.clip)) if self.clip else self

    def build(self) -> Agreement | None:
        """What measures, not loaded yet; None if nothing is to be measured."""
        return Agreement(self) if self.clip else None


class Agreement:
    """A CLIP. `look` may be called in threads; `measure` takes one pair at a time, so that nothing depends on a batch."""

    def __init__(self, settings: AgreementSettings) -> None:
        self.settings = settings

    def load(self) -> None:
        """Load the model. Raises ValueError that teaches for a folder that is no CLIP."""
        import torch
        from transformers import AutoConfig, CLIPModel, CLIPProcessor

        settings = self.settings
        assert settings.clip is not None, "build() gives none without it"
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
        folder = local_folder(settings.clip, settings.weights)
        try:
            found = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if found != "clip":
                raise ValueError(f"agreement.clip: {settings.clip} is a model of type {found!r}, expected 'clip'")
            self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            loaded: Any = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, RuntimeError, TypeError) as error:
            raise ValueError(f"agreement.clip: {settings.clip} cannot be loaded as CLIP ({type(error).__name__}: {error}): is its folder "
                             "complete?") from error
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"agreement.clip: {settings.clip} lacks {len(info['missing_keys'])} weights (first: "
                             f"{min(info['missing_keys'])}): use a complete folder")
        self.model: Any = model.to(self.device).eval()
        self.tokens = int(model.config.text_config.max_position_embeddings)

    def look(self, rgb_HWC: NDArray[Any]) -> Any:
        """The picture (uint8 RGB) as CLIP's own processor makes it, 1 x 3 x side x side."""
        return self.processor.image_processor(images=[rgb_HWC], return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def measure(self, look_BCHW: Any, caption: str) -> float:
        """The cosine, -1 to 1."""
        import torch

        text = self.processor.tokenizer([caption], truncation=True, max_length=self.tokens, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            seen = self.model(pixel_values=look_BCHW.to(self.device), input_ids=text["input_ids"], attention_mask=text["attention_mask"])
            cosine = torch.nn.functional.cosine_similarity(seen.image_embeds.float(), seen.text_embeds.float())
        return round(float(cosine[0]), DIGITS)

    def fault(self, cosine: float, caption: str) -> Fault | None:
        """A fault for a caption that does not fit, or None."""
        lowest = self.settings.lowest
        if cosine >= lowest:
            return None
        return Fault("disagrees", f"cosine {cosine:.3f}, at least {lowest:g} expected: {caption[:SHOWN_CHARS]}")
