"""The seam between the caption stage and what writes captions: facts, LLaVA, later a server. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What a captioner said of one picture, before anything was checked.

    `finish_reason` is "stop" where the captioner ended by itself and "length" where it was cut off; `prompt` the whole text
    that it was given and `decoding` how words were chosen, so that the caption can be made again.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt: str
    decoding: str


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who writes: the engine, the model's name, and the revision (commit, hash of the folder, version) of its weights."""

    engine: str
    model: str
    revision: str


class Captioner(Protocol):
    """Writes one caption for each picture. The caption of a picture does not depend on the others in its batch."""

    @property
    def identity(self) -> Identity: ...

    def load(self) -> None:
        """Load what is needed and prove that it works. Raises ValueError that teaches if it cannot be used."""

    def prepare(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """Shrink a picture to what the captioner will look at. Called in threads, ahead of `describe`, which takes both forms."""
        ...

    def describe(self, images: Sequence[NDArray[Any]], seeds: Sequence[int], *, attempt: int = 0) -> list[Captioned]:
        """Describe pictures (uint8 RGB, height x width x 3).

        `seeds` decide whatever is drawn by chance, one a picture; `attempt` counts how often the same pictures were asked for
        before, so that another attempt can decode in another way.
        """
        ...
