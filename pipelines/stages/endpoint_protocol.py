"""OpenAI's chat-completions protocol: what a caption server is asked, and whether what comes back is a caption. No I/O here."""

from __future__ import annotations

import base64
import email.utils
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.runtime.stage import StageUnusable
from pipelines.stages.asking import IMAGE_MARK, MAX_NEW_TOKENS, QUESTION, Decoding
from pipelines.stages.captioner import Captioned

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN_CHARS = 200
JPEG_QUALITY = 95  # choice


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the servers are and what they are asked.

    `urls` are base addresses of replicas that serve the same `model` (`http://gpu-1:8000/v1`). The key, if servers want one, is in
    the environment variable that `api_key_env` names. `image_tokens` (None: not checked) is how many tokens a picture takes at least
    in the server's own count of the prompt: servers have been seen to drop pictures silently. A row is given up after `tries` that
    failed while other requests were answered; if nobody answers anything for `patience_s`, the job stops.
    """

    urls: tuple[str, ...] = field(metadata={"result": False})
    model: str
    question: str = QUESTION
    system: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    encoding: Literal["png", "jpeg"] = "png"  # choice: without loss; 336 px are 0.2 MB
    image_tokens: int | None = 576  # LLaVA-1.5: 24 x 24 patches
    in_flight: int = field(default=32, metadata={"result": False})  # choice: two batches of a server of 16
    timeout_s: float = field(default=120.0, metadata={"result": False})
    tries: int = field(default=6, metadata={"result": False})
    patience_s: float = field(default=900.0, metadata={"result": False})  # choice: a server loads 26 GB of weights in minutes
    api_key_env: str = field(default="SUPIR_ENDPOINT_KEY", metadata={"result": False})

    def __post_init__(self) -> None:
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError(f"captioner.urls is {list(self.urls)}, expected base addresses such as http://gpu-1:8000/v1")
        if any("@" in url.split("//", 1)[1].split("/", 1)[0] for url in self.urls):
            raise ValueError(f"captioner.urls holds a password: put the key into the environment variable {self.api_key_env} instead")
        if IMAGE_MARK in self.question + self.system:
            raise ValueError(f"captioner.question or captioner.system contains {IMAGE_MARK!r}, which marks a picture's place: leave it "
                             "out, the server puts it there")
        for name in ("in_flight", "tries", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"captioner.{name} is {getattr(self, name)}, expected 1 or more")
        if self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError(f"captioner: timeout_s {self.timeout_s}, patience_s {self.patience_s}: expected more than 0, and 0 or more")


class BadAnswer(Exception):
    """What came back is no caption; `reason` is a code of the ledger."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def request_body(settings: ServerSettings, rgb_HWC: NDArray[Any], decoding: Decoding, seed: int) -> bytes:
    """The request for the caption of a picture (uint8 RGB), as JSON."""
    from supir_model.images import encode_jpeg, encode_png

    data = encode_png(rgb_HWC) if settings.encoding == "png" else encode_jpeg(rgb_HWC, quality=JPEG_QUALITY)
    data_url = f"data:image/{settings.encoding};base64,{base64.b64encode(data).decode()}"
    return json.dumps({"model": settings.model, "messages": messages(settings.system, settings.question, data_url),
                       "max_tokens": settings.max_new_tokens, "temperature": decoding.temperature, "top_p": decoding.top_p,
                       "seed": seed}).encode()


def messages(system: str, question: str, data_url: str) -> Sequence[dict[str, Any]]:
    """The conversation of one request: the picture first, then the question, as LLaVA was trained."""
    content = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": question}]
    said = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": content}]


def caption_of(answer: Any, settings: ServerSettings, decoding: Decoding, seed: int) -> Captioned:
    """The caption in an answer. Raises BadAnswer for another shape or a picture that was not read, StageUnusable for another model."""
    try:
        choice = answer["choices"][0]
        text, finish, model = choice["message"]["content"], choice.get("finish_reason"), answer.get("model")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadAnswer("endpoint_nonsense", f"no choices[0].message.content in {json.dumps(answer)[:SHOWN_CHARS]}") from error
    if not isinstance(text, str) or finish not in ("stop", "length"):
        raise BadAnswer("endpoint_nonsense", f"content of type {type(text).__name__}, finish_reason {finish!r}")
    if model is not None and not same_model(str(model), settings.model):
        raise StageUnusable(f"a server answered as {model!r}, expected {settings.model!r}: all of captioner.urls must serve the same "
                            "model")
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    prompt_tokens, tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if settings.image_tokens and isinstance(prompt_tokens, int) and prompt_tokens < settings.image_tokens:
        raise BadAnswer("image_not_read", f"the server counted {prompt_tokens} tokens of prompt, a picture alone takes "
                                          f"{settings.image_tokens}")
    return Captioned(text=" ".join(text.split()), finish_reason=finish, prompt=settings.question, decoding=decoding.describe(seed),
                     tokens=tokens if isinstance(tokens, int) and tokens > 0 else 0)


def same_model(said: str, wanted: str) -> bool:
    """Whether a server's name of its model is ours; `transformers serve` adds @revision."""
    return said == wanted or said.rpartition("@")[0] == wanted


def seconds_from(retry_after: str | None) -> float | None:
    """Retry-After, as seconds or as a date, in seconds from now; None if there is none that can be read."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
