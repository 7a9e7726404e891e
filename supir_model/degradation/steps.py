"""What is done to one picture: frozen records of every drawn value, in the order in which they are applied.

Lengths in pixels, noise in units of 8-bit levels (0..255), angles in radians. JSON goes both ways.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["area", "bilinear", "bicubic", "bicubic_antialiased"]


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A bivariate bump. `family` gaussian: exp(-q^beta / 2), plateau: 1 / (1 + q^beta), q = x' inverse(covariance) x."""

    family: Literal["gaussian", "plateau"]
    size_px: int
    sigma_x: float
    sigma_y: float
    rotation: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class Sinc:
    """A circular low-pass filter with ringing; `cutoff` in radians per pixel."""

    size_px: int
    cutoff: float


@dataclass(frozen=True, kw_only=True)
class Resize:
    height: int
    width: int
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """`grey`: one value for the three channels. `purpose` names the stream of its pixels."""

    sigma: float
    grey: bool
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """`scale` multiplies the shot noise of a picture whose full scale is 2^ceil(log2(number of its levels)) quanta."""

    scale: float
    grey: bool
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """Encoded and decoded with 4:2:0 chroma."""

    quality: int


@dataclass(frozen=True, kw_only=True)
class Sharpen:
    """Unsharp mask of the ground truth before it is degraded; `threshold` in 8-bit levels, `radius` is half its kernel."""

    weight: float
    radius_px: int
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """To 8 bits, as a file would."""


Step = Blur | Sinc | Resize | Gaussian | Poisson | Jpeg | Sharpen | Round
STEPS: dict[str, type[Any]] = {c.__name__: c for c in (Blur, Sinc, Resize, Gaussian, Poisson, Jpeg, Sharpen, Round)}


@dataclass(frozen=True, kw_only=True)
class DegradationParams:
    """Everything that degrades one picture of `size_px` x `size_px`; a function of the four coordinates before `steps`."""

    preset: str
    seed: int
    position: int
    size_px: int
    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        head = {"preset": self.preset, "seed": self.seed, "position": self.position, "size_px": self.size_px}
        return head | {"steps": [{"step": type(step).__name__} | asdict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DegradationParams:
        steps = []
        for entry in values["steps"]:
            fields = dict(entry)
            name = fields.pop("step")
            if name not in STEPS:
                raise ValueError(f"unknown degradation step {name!r}: known are {', '.join(STEPS)}")
            steps.append(STEPS[name](**fields))
        return cls(**{**values, "steps": tuple(steps)})
