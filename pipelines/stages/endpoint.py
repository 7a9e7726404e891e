"""Captions from a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, `transformers serve`): settings and captioner.

The requests themselves, with their retries and back-pressure, are in endpoint_client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stages.captioner import Asked, Canary, Captioned, Identity, InOrder, Refused, known_picture
from pipelines.stages.llava import GREEDY, IMAGE_MARK, MAX_NEW_TOKENS, QUESTION, REASK, Decoding, squared

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.stages.endpoint_client import EndpointClient

SEEDS = 2**31  # servers take a seed as a C int
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pictures, with which LLaVA-1.5 pads


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where the servers are and how to ask them.

    `urls` are base addresses of replicas that serve the same `model` (`http://gpu-1:8000/v1`). `revision` is what you say of the
    weights that they serve: another one makes captions stale. The key, if servers want one, is in the environment variable that
    `api_key_env` names. `image_tokens` (None: not checked) is how many tokens a picture takes at least in the server's own count of
    the prompt: servers have been seen to drop pictures silently. A row is given up after `tries` that failed while other requests
    were answered; if nobody answers anything for `patience_s`, the job stops.
    """

    engine: str = "endpoint"
    urls: tuple[str, ...] = field(metadata={"result": False})
    model: str
    revision: str | None = None
    question: str = QUESTION
    system: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    decoding: Decoding = GREEDY  # choice: a corpus caption can be made again
    reask: Decoding = REASK
    side_px: int = 336  # LLaVA-1.5's vision tower
    fit: Literal["pad", "whole"] = "pad"  # whole: the longer side shrinks to side_px, for models that take any shape
    encoding: Literal["png", "jpeg"] = "png"  # choice: without loss; 336 px are 0.2 MB
    image_tokens: int | None = 576  # LLaVA-1.5: 24 x 24 patches
    in_flight: int = field(default=32, metadata={"result": False})  # choice: two batches of a server of 16
    timeout_s: float = field(default=120.0, metadata={"result": False})
    tries: int = field(default=6, metadata={"result": False})
    patience_s: float = field(default=900.0, metadata={"result": False})  # choice: a server loads 26 GB of weights in minutes
    api_key_env: str = field(default="SUPIR_ENDPOINT_KEY", metadata={"result": False})
    canary: bool = field(default=True, metadata={"result": False})

    def __post_init__(self) -> None:
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError(f"captioner.urls is {list(self.urls)}, expected base addresses such as http://gpu-1:8000/v1")
        if any("@" in url.split("//", 1)[1].split("/", 1)[0] for url in self.urls):
            raise ValueError(f"captioner.urls holds a password: put the key into the environment variable {self.api_key_env} instead")
        if IMAGE_MARK in self.question:
            raise ValueError(f"captioner.question contains {IMAGE_MARK!r}, which marks a picture's place: the server puts it there")
        for name in ("in_flight", "tries", "max_new_tokens", "side_px"):
            if getattr(self, name) < 1:
                raise ValueError(f"captioner.{name} is {getattr(self, name)}, expected 1 or more")
        if self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError(f"captioner: timeout_s {self.timeout_s}, patience_s {self.patience_s}: expected more than 0, and 0 or more")

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


def messages(system: str, question: str, data_url: str) -> Sequence[dict[str, Any]]:
    """The conversation of one request: the picture first, then the question, as LLaVA was trained."""
    content = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": question}]
    said = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": content}]
