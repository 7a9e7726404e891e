"""A captioner without weights: one or two plain sentences that state what can be measured in a picture.

Every word is a threshold on a number of the picture, so the same pixels give the same sentence on every machine, and a picture
that is made darker is called darker. The thresholds were set so that the words divide photographs into groups of useful size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.stages.captioner import Asked, Captioned, Identity, InOrder, Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"  # raise it when other pixels, words or thresholds decide
COLOUR_SIDE_PX = 128  # choice: colours and light are properties of areas, not of pixels
DETAIL_SIDE_PX = 1024  # choice: bounds the work; what is blurred at this size is blurred to the eye
NAMED_SHARE = 0.12  # choice: a colour that covers less than an eighth is not what one would mention
COLOURS_NAMED = 3  # choice
GREY_CHROMA = 3.0  # choice: mean CIELAB chroma below which a picture has no visible colour

# (upper bound, word); measured on 187 photographs: words divide them near the 5, 20, 60 and 90 % marks
BRIGHTNESS = ((25.0, "very dark"), (41.0, "dark"), (54.0, "medium-bright"), (66.0, "bright"), (101.0, "very bright"))  # mean L*
CONTRAST = ((14.0, "low"), (22.0, "medium"), (100.0, "high"))  # standard deviation of L*
TEXTURE = ((1.1, "smooth surfaces"), (2.4, "gentle texture"), (4.5, "clear texture"), (100.0, "dense fine texture"))  # mean |dL*|
BLUR = ((0.20, "very sharp"), (0.36, "sharp"), (0.50, "slightly soft"), (1.1, "blurred"))  # Crete et al. 2007, 0 .. 1
LONG_SIDE_RATIO = 1.1  # choice: less than this and a picture is called square

# The eleven basic colour terms (Berlin and Kay 1969), each by one or more sRGB colours that English speakers call so.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (28, 28, 28)),
    "grey": ((80, 80, 80), (128, 128, 128), (175, 175, 175)),
    "white": ((255, 255, 255), (225, 225, 225)),
    "red": ((200, 20, 30), (140, 15, 20), (230, 60, 60)),
    "orange": ((245, 130, 20), (225, 110, 50), (250, 170, 80)),
    "brown": ((110, 65, 30), (75, 50, 35), (150, 105, 70), (190, 155, 120)),
    "yellow": ((245, 220, 40), (215, 190, 60), (250, 235, 140)),
    "green": ((20, 210, 30), (40, 130, 50), (30, 70, 35), (110, 150, 60), (150, 190, 120), (80, 95, 50)),
    "blue": ((10, 10, 235), (30, 80, 180), (25, 40, 90), (90, 150, 215), (160, 195, 230), (70, 100, 130), (40, 160, 190)),
    "purple": ((110, 40, 140), (70, 40, 90), (150, 110, 180)),
    "pink": ((240, 130, 170), (225, 175, 185), (220, 60, 130)),
}


@dataclass(frozen=True)
class Facts:
    """What is measured. Lightness is CIELAB L*, 0 to 100."""

    width: int
    height: int
    lightness: float
    contrast: float  # standard deviation of L*
    chroma: float  # mean distance from grey, CIELAB units
    shares: tuple[tuple[str, float], ...]  # (colour, share of the area), largest first
    texture: float  # mean step in L* to the next pixel at 1024 px
    blur: float  # 0 sharp .. 1 blurred, Crete et al. 2007


def describe(rgb_HWC: NDArray[Any]) -> str:
    """One or two sentences about a picture (uint8 RGB, height x width x 3): shape, light, colours, texture, sharpness."""
    return sentence(measure(rgb_HWC))


def measure(rgb_HWC: NDArray[Any]) -> Facts:
    """Measure a picture (uint8 RGB, height x width x 3). Raises ValueError for anything else."""
    import cv2
    import numpy as np

    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3 or 0 in rgb_HWC.shape:
        raise ValueError(f"a picture of shape {rgb_HWC.shape} and type {rgb_HWC.dtype} came in, expected uint8 height x width x 3")
    lab_HWC = cv2.cvtColor(_shrunk(rgb_HWC, COLOUR_SIDE_PX).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    grey_HW = cv2.cvtColor(_shrunk(rgb_HWC, DETAIL_SIDE_PX).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    height, width = rgb_HWC.shape[:2]
    return Facts(
        width=width, height=height,
        lightness=float(lab_HWC[..., 0].mean()), contrast=float(lab_HWC[..., 0].std()),
        chroma=float(np.hypot(lab_HWC[..., 1], lab_HWC[..., 2]).mean()),
        shares=_colour_shares(lab_HWC), texture=_texture(grey_HW), blur=blur_effect(grey_HW))


def sentence(facts: Facts) -> str:
    """Put measured facts into words."""
    shape = _shape(facts.width, facts.height)
    kind = "A black-and-white photograph" if facts.chroma < GREY_CHROMA else "A photograph"
    light, contrast = _word(facts.lightness, BRIGHTNESS), _word(facts.contrast, CONTRAST)
    return (f"{kind} in {shape} format, {light} with {contrast} contrast, {_colours(facts.shares)}. "
            f"It shows {_word(facts.texture, TEXTURE)} and is {_word(facts.blur, BLUR)}.")


def blur_effect(grey_HW: NDArray[Any], taps: int = 9) -> float:
    """How little a picture changes when it is blurred again: 0 (sharp) to 1 (blurred, or flat).

    Crete, Dolmiere, Ladret, Nicolas: The blur effect (2007), with its box of 9 taps: along each axis the share of the
    neighbour differences that survives the second blur; the worse axis counts.
    """
    import cv2
    import numpy as np

    worst = 0.0
    for axis, size in ((0, (1, taps)), (1, (taps, 1))):
        again_HW = cv2.blur(grey_HW, size, borderType=cv2.BORDER_REFLECT_101)
        steps_HW = np.abs(np.diff(grey_HW, axis=axis))
        lost_HW = np.maximum(steps_HW - np.abs(np.diff(again_HW, axis=axis)), 0)
        total = float(steps_HW.sum())
        worst = max(worst, 1.0 - float(lost_HW.sum()) / total if total > 0 else 1.0)
    return worst


def _shrunk(rgb_HWC: NDArray[Any], side_px: int) -> NDArray[Any]:
    import cv2

    height, width = rgb_HWC.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return rgb_HWC
    return cv2.resize(rgb_HWC, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def _texture(grey_HW: NDArray[Any]) -> float:
    import numpy as np

    steps = [np.abs(np.diff(grey_HW, axis=axis)) for axis in (0, 1)]
    return float(np.mean([step.mean() if step.size else 0.0 for step in steps]))


def _colour_shares(lab_HWC: NDArray[Any]) -> tuple[tuple[str, float], ...]:
    """Give every pixel the name of the nearest colour in CIELAB, and count."""
    import cv2
    import numpy as np

    names = [name for name, colours in COLOURS.items() for _ in colours]
    palette = np.array([colour for colours in COLOURS.values() for colour in colours], np.float32)[None] / 255
    palette_KC = cv2.cvtColor(palette, cv2.COLOR_RGB2LAB)[0]
    pixels_PC = lab_HWC.reshape(-1, 3)
    nearest_P = ((pixels_PC[:, None] - palette_KC[None]) ** 2).sum(-1).argmin(1)
    counts = np.bincount(nearest_P, minlength=len(names)) / len(pixels_PC)
    shares = {name: float(sum(c for c, n in zip(counts, names, strict=True) if n == name)) for name in COLOURS}
    return tuple(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _shape(width: int, height: int) -> str:
    if max(width, height) < LONG_SIDE_RATIO * min(width, height):
        return "square"
    return "landscape" if width > height else "portrait"


def _colours(shares: Sequence[tuple[str, float]]) -> str:
    main, *others = [name for name, share in shares if share >= NAMED_SHARE][:COLOURS_NAMED] or [shares[0][0]]
    return f"mostly {main}" + (f" with some {' and '.join(others)}" if others else "")


def _word(value: float, scale: tuple[tuple[float, str], ...]) -> str:
    return next((word for bound, word in scale if value < bound), scale[-1][1])


@dataclass(frozen=True, kw_only=True)
class FactsSettings:
    """The captioner that needs no weights. It has nothing to set."""

    engine: str = "facts"

    def weights(self) -> str:
        """There are none: the version of the words stands in for them."""
        return VERSION

    def build(self, weights: str = "", batch_size: int = 8) -> FactsCaptioner:
        """The captioner itself; it has no weights."""
        return FactsCaptioner()


class FactsCaptioner(InOrder):
    """`describe` behind the captioner's seam: deterministic, so another attempt gives the same sentence."""

    identity = Identity(engine="facts", model="facts", revision=VERSION)

    def load(self) -> None:
        """Nothing to load."""

    def prove(self) -> None:
        """Nothing to prove: the sentences are arithmetic."""

    def prepare(self, rgb_HWC: NDArray[Any]) -> NDArray[Any]:
        """The whole picture is measured."""
        return rgb_HWC

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned | Refused]]:
        """One sentence or two for each picture."""
        for one in asked:
            yield one, Captioned(text=describe(one.picture_HWC), finish_reason="stop", prompt="", decoding="deterministic")
