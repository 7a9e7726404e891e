"""The seam between the caption stage and what writes captions: facts, LLaVA, a server. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What a captioner said of one picture, before anything was checked.

    `finish_reason` is "stop" where the captioner ended by itself and "length" where it was cut off; `prompt` the whole text
    that it was given and `decoding` how words were chosen, so that the caption can be made again. `tokens` is how many it wrote,
    if that is known.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt: str
    decoding: str
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A picture that the captioner could not caption: `reason` is a code of the ledger, `detail` what happened."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture (uint8 RGB, height x width x 3, or what the captioner's `prepare` made of it) to caption. `place` is the caller's name
    for it.

    `seed` decides whatever is drawn by chance; `attempt` counts how often the picture was asked for before, so that another
    attempt can decode in another way.
    """

    place: int
    picture_HWC: Any = field(repr=False)
    seed: int
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who writes: the engine, the model's name, and the revision (commit, hash of the folder, version) of its weights."""

    engine: str
    model: str
    revision: str


class Captioner(Protocol):
    """Writes one caption for each picture. The caption of a picture does not depend on the others."""

    @property
    def identity(self) -> Identity: ...

    def load(self) -> None:
        """Load what is needed and prove that it works. Raises ValueError that teaches if it cannot be used."""

    def prove(self) -> None:
        """Prove again that it still looks at pictures and says the same of the same one. Raises ValueError that teaches."""

    def prepare(self, rgb_HWC: NDArray[Any]) -> Any:
        """Make of a picture what the captioner will look at. Called in threads, ahead of `describe_all`, which takes both forms."""
        ...

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned | Refused]]:
        """Caption pictures as room for them comes free; answers come in any order.

        `asked` is drawn from only when there is room for one more, so it may grow while answers come.
        """
        ...


class InOrder:
    """`describe` for captioners: a few pictures, answers in their order."""

    def describe(self: Any, images: Sequence[NDArray[Any]], seeds: Sequence[int], *, attempt: int = 0) -> list[Captioned]:
        """Describe pictures (uint8 RGB), one seed for each. Raises ValueError for one that was refused."""
        asked = [Asked(place=place, picture_HWC=image, seed=seed, attempt=attempt)
                 for place, (image, seed) in enumerate(zip(images, seeds, strict=True))]
        answers = {one.place: answer for one, answer in self.describe_all(iter(asked))}
        refused = [answer for answer in answers.values() if isinstance(answer, Refused)]
        if refused:
            raise ValueError(f"{refused[0].reason}: {refused[0].detail}")
        return [answers[place] for place in range(len(asked))]


def known_picture(side_px: int) -> NDArray[Any]:
    """A picture that nobody would describe as a blank one: blue above green, and a yellow disc."""
    import numpy as np

    y_HW, x_HW = np.mgrid[:side_px, :side_px] / side_px
    rgb_HWC = np.where((y_HW < 0.6)[..., None], (70, 130, 220), (50, 140, 40)).astype(np.uint8)
    rgb_HWC[(y_HW - 0.25) ** 2 + (x_HW - 0.7) ** 2 < 0.02] = (250, 220, 60)
    return rgb_HWC


class Canary:
    """A known picture and a blank one: a captioner that looks says different things of them, and tomorrow the same as today."""

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self.first: list[str] | None = None

    def check(self, captioner: Any, model: str) -> None:
        """Ask about both, at once and, the first time, one by one. Raises ValueError that teaches."""
        import numpy as np

        pair = [np.full((self.side_px, self.side_px, 3), 127, np.uint8), known_picture(self.side_px)]
        said = [answer.text for answer in captioner.describe(pair, [0, 0])]
        if said[0] == said[1]:
            raise ValueError(f"{model} says the same of a blank picture and of a landscape ({said[0][:80]!r}): it does "
                             "not look at its input; check the weights, or set captioner.canary=false for a model that is not trained")
        again = [captioner.describe([picture], [0])[0].text for picture in pair] if self.first is None else self.first
        if said != again:
            changed = next((old, new) for old, new in zip(again, said, strict=True) if old != new)
            raise ValueError(f"{model} said {changed[0][:80]!r} of a known picture and now {changed[1][:80]!r}, under the same seed: its "
                             "captions cannot be made again; look at the device and the server, or set captioner.canary=false")
        self.first = said
