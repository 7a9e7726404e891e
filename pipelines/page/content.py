"""What the page shows, as plain data: `collect` fills it from a workspace, `sections` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside the page. `src` is a data: address; `width` and `height` in pixels."""

    src: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rows that one step did not let through, for one reason."""

    reason: str
    status: str  # rejected or failed
    count: int


@dataclass(frozen=True, kw_only=True)
class FlowStep:
    """A column of the flow: how many rows arrive, and what is lost before the next column."""

    label: str
    count: int
    lost: list[Lost] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The ledger: steps from left to right; `ends`, where there are some, split what the last step holds."""

    steps: list[FlowStep]
    ends: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One thing that was asked for and not kept. `picture` is None for what could not be read."""

    name: str
    status: str
    reason: str
    value: str
    picture: Picture | None


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A kept photograph and its caption."""

    name: str
    picture: Picture
    caption: str
    engine: str
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Negative:
    """A negative sample beside the photograph it was made from."""

    name: str
    parent: Picture | None
    picture: Picture
    prompt: str
    settings: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity of a training run over the images that it has seen."""

    title: str
    points: list[tuple[int, float]]
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    title: str
    what: str
    curves: list[Curve]
    facts: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One state of a photograph in the comparison; `psnr` in dB and `ssim` against the original, None for the original."""

    label: str
    picture: Picture
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A held-out photograph: degraded, stage 1, restored, original."""

    name: str
    degradation: str
    states: list[Scored]


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A picture of no known original, as it came and as it was restored."""

    name: str
    states: list[Scored]
    caption: str


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """One command of the chain, with what it cost when its work was done (None: not measured)."""

    job: str
    command: str
    seconds: float | None
    peak_gib: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Who made a photograph, and under which licence it stands here."""

    name: str
    author: str
    licence: str
    licence_url: str
    source_url: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows."""

    title: str
    made_at: str
    network: list[tuple[str, str]]
    flow: Flow | None
    rejects: list[Reject]
    captions: list[Captioned]
    negatives: list[Negative]
    trainings: list[Training]
    evaluations: list[Evaluation]
    protocol: dict[str, str]
    restorations: list[Restoration]
    commands: list[CommandRun]
    environment: dict[str, str]  # what was exported before the commands
    credits: list[Credit]
    mlflow: str | None
    missing: list[str]  # what the workspace did not hold, in words
