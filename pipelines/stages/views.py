"""What a captioner is shown of a picture: the original, the degraded picture, or that one through the robust encoder.

The paper captions its training images as they are; at test time LLaVA reads D(E_dr(x_LQ)) (Sec. 3.2, App. A.2). Captions of pictures
that were seen in the same way as at test time are the other two settings.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stages.weights import folder_identity, local_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

MULTIPLE_PX = 64  # the network's sizes


@dataclass(frozen=True, kw_only=True)
class SeenSettings:
    """`kind` is what is shown: `original`, `degraded` (middle square at `size_px`, degraded) or `robust` (that, encoded and decoded).

    `degradation` names a preset, `seed` and the image's id its draw. `prior` (and `encoder`, a folder of a trained robust encoder;
    None: the prior's own) are needed for `robust`; `weights` is their hash.
    """

    kind: Literal["original", "degraded", "robust"] = "original"
    degradation: str = "real_esrgan"
    seed: int = 0
    size_px: int = 512  # choice: twice what LLaVA looks at, and the size of the crops that the encoder is trained on
    prior: str | None = field(default=None, metadata={"result": False})
    encoder: str | None = field(default=None, metadata={"result": False})
    device: str = field(default="auto", metadata={"result": False})
    weights: str = ""

    def __post_init__(self) -> None:
        if self.size_px < MULTIPLE_PX or self.size_px % MULTIPLE_PX:
            raise ValueError(f"seen.size_px is {self.size_px}, expected a multiple of {MULTIPLE_PX}")

    def identified(self) -> SeenSettings:
        """The same with the hashes of the weights that it will read, checked. Raises ValueError that teaches."""
        from supir_model.degradation import PRESETS

        if self.kind != "original" and self.degradation not in PRESETS:
            raise ValueError(f"seen.degradation is {self.degradation!r}, known: {', '.join(PRESETS)}")
        if self.kind != "robust":
            return self
        if self.prior is None:
            raise ValueError("seen.kind is 'robust', which needs an autoencoder: set seen.prior to a folder of SDXL or of ours, and "
                             "seen.encoder to that of a trained encoder")
        return replace(self, weights=" ".join(folder_identity(place) if place else "own" for place in (self.prior, self.encoder)))

    def build(self) -> Seen:
        """What shows pictures."""
        return Seen(self)


class Seen:
    """Shows pictures as the settings say. `show` may be called from several threads."""

    def __init__(self, settings: SeenSettings) -> None:
        self.settings = settings
        self._one_at_a_time = threading.Lock()  # pictures of one size go through the autoencoder one by one
        self._restorer: Any = None

    def load(self) -> None:
        """Load the autoencoder, where one is needed."""
        settings = self.settings
        if settings.kind != "robust":
            return
        import torch

        from supir_model.weights import load_restorer

        assert settings.prior is not None, "checked by identified()"
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
        prior, trained = settings.weights.split() or ("", "")
        encoder = local_folder(settings.encoder, trained) if settings.encoder else None
        self._restorer = load_restorer(local_folder(settings.prior, prior), encoder=encoder, adaptor=None, device=self._device,
                                       dtype=torch.float32)

    def describe(self, image_id: str) -> str:
        """For the row: what the captioner saw, enough to show it again."""
        settings = self.settings
        return "original" if settings.kind == "original" else f"{settings.kind} {settings.degradation} seed {settings.seed}"

    def show(self, rgb_HWC: NDArray[Any], image_id: str) -> NDArray[Any]:
        """What the captioner sees of a picture (uint8 RGB)."""
        if self.settings.kind == "original":
            return rgb_HWC
        from supir_model.degradation import apply_rgb, draw
        from supir_model.images import crop, resize_short_side

        size_px = self.settings.size_px
        square_HWC = crop(resize_short_side(rgb_HWC, size_px), size_px)
        position = int.from_bytes(hashlib.sha256(f"seen\0{image_id}".encode()).digest()[:7], "big")
        lq_HWC = apply_rgb(square_HWC, draw(self.settings.degradation, self.settings.seed, position, size_px))
        return self._through_encoder(lq_HWC) if self.settings.kind == "robust" else lq_HWC

    def _through_encoder(self, lq_HWC: NDArray[Any]) -> NDArray[Any]:
        import torch

        from supir_model.encoder import decode, encode_mode
        from supir_model.images import model_to_rgb, rgb_to_model

        with self._one_at_a_time, torch.inference_mode():
            z_BCHW = encode_mode(self._restorer.components.vae, self._restorer.encoder, rgb_to_model([lq_HWC]).to(self._device))
            seen_HWC: NDArray[Any] = model_to_rgb(decode(self._restorer.components.vae, z_BCHW).float().cpu().clamp(-1, 1))[0]
        return seen_HWC
