"""Captions from a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, `transformers serve`): settings and captioner.

What is sent and read is in endpoint_protocol, the connections with their retries and back-pressure in endpoint_client.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stages.asking import GREEDY, REASK, Decoding
from pipelines.stages.captioner import Asked, Canary, Captioned, Identity, InOrder, Refused, known_picture
from pipelines.stages.endpoint_protocol import ServerSettings
from pipelines.stages.llava import squared

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.stages.endpoint_client import EndpointClient

SEEDS = 2**31  # servers take a seed as a C int
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pictures, with which LLaVA-1.5 pads


@dataclass(frozen=True, kw_only=True)
class EndpointSettings(ServerSettings):
    """The servers, and what they are shown. `revision` is what you say of the weights that they serve: another one makes captions stale.

    `canary` makes a worker prove that the model looks.
    """

    engine: str = "endpoint"
    revision: str | None = None
    decoding: Decoding = GREEDY  # choice: a corpus caption can be made again
    reask: Decoding = REASK
    side_px: int = 336  # LLaVA-1.5's vision tower
    fit: Literal["pad", "whole"] = "pad"  # whole: the longer side shrinks to side_px, for models that take any shape
    canary: bool = field(default=True, metadata={"result": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side_px < 1:
            raise ValueError(f"captioner.side_px is {self.side_px}, expected 1 or more")

    def weights(self) -> str:
        """What names the weights: nobody but the server sees them, so what the configuration says of them."""
        return f"{self.model}@{self.revision or 'unknown'}"

    def build(self, weights: str = "", batch_size: int = 0) -> EndpointCaptioner:
        """The captioner; how many requests are on their way is set by `in_flight`."""
        return EndpointCaptioner(self)


class EndpointCaptioner(InOrder):
    """Many requests on their way at a time; a caption depends on its own picture, seed and attempt."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.canary = Canary(settings.side_px)
        self._client: EndpointClient | None = None

    @property
    def identity(self) -> Identity:
        """The model's name, which every answer has to bear, and the revision that the configuration states."""
        return Identity(engine="endpoint", model=self.settings.model, revision=self.settings.revision or "unknown")

    def load(self) -> None:
        """Reach a server, see that it serves the model, reads pictures, and looks at them. Raises ValueError that teaches."""
        from pipelines.stages.endpoint_client import EndpointClient

        self._client = EndpointClient(self.settings)
        self._client.check()
        self.prove()

    def prove(self) -> None:
        """One known picture is answered; with `canary`, a blank one otherwise, and both the same as at the first time."""
        first = self._submit(Asked(place=0, picture_HWC=known_picture(self.settings.side_px), seed=0)).result()
        if isinstance(first, Refused):
            raise ValueError(f"{', '.join(self.settings.urls)}: a known picture was not captioned: {first.reason}: {first.detail}")
        if self.settings.canary:
            self.canary.check(self, self.settings.model)

    def prepare(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """The picture that is sent. One that was prepared already stays as it is."""
        from supir_model.images import resize

        side_px = self.settings.side_px
        if self.settings.fit == "pad":
            return squared(rgb_HWC, side_px, CLIP_MEAN)
        height, width = rgb_HWC.shape[:2]
        scale = side_px / max(height, width)
        return rgb_HWC if scale >= 1 else resize(rgb_HWC, max(1, round(height * scale)), max(1, round(width * scale)))

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned | Refused]]:
        """Captions as they come back. No more than `in_flight` requests are out; fewer while servers say that they are busy."""
        assert self._client is not None, "load() comes first"
        out: dict[Future[Captioned | Refused], Asked] = {}
        more = True
        try:
            while more or out:
                while more and len(out) < self._client.window:
                    one = next(asked, None)
                    more = one is not None
                    if one is not None:
                        out[self._submit(one)] = one
                ended, _ = wait(out, return_when=FIRST_COMPLETED) if out else (set(), None)
                for future in ended:
                    yield out.pop(future), future.result()
        finally:
            for future in out:
                future.cancel()

    def _submit(self, one: Asked) -> Future[Captioned | Refused]:
        assert self._client is not None, "load() comes first"
        settings = self.settings
        decoding = settings.reask if one.attempt and not settings.decoding.temperature else settings.decoding
        return self._client.submit(self.prepare(one.picture_HWC), decoding, one.seed % SEEDS)

