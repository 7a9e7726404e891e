"""What the page of a dataset shows, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.page.content import Flow, Picture


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture with what was measured of it, or why it is not kept."""

    picture: Picture
    kept: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A threshold of the selection: values on the wrong side of it are rejected for `reason`."""

    reason: str
    value: float
    side: str  # "min": less is rejected; "max": more is
    origin: str = ""  # in words
    flags: str = ""  # of curate, that move it


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure over the sample: counts by bin, its thresholds, and the pictures nearest to them.

    `rejected` are the rows that these thresholds rejected, `others` those that were rejected for another reason.
    """

    name: str
    edges: list[float]  # one more than the bins; the outer bins hold what lies beyond
    kept: list[int]
    rejected: list[int]
    others: list[int]
    logarithmic: bool
    limits: list[Limit] = field(default_factory=list)
    near: list[Shown] = field(default_factory=list)  # sorted by value
    magnified: bool = False  # whether `near` are details in their own pixels


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures of one fate. `count` is how many rows of the dataset met it, of which some are shown."""

    title: str
    status: str  # kept, rejected or failed
    count: int
    pictures: list[Shown]
    messages: list[str] = field(default_factory=list)  # of rows without a picture


@dataclass(frozen=True, kw_only=True)
class Group:
    """The best copy of a picture, and the others."""

    winner: Shown | None
    losers: list[Shown]


@dataclass(frozen=True, kw_only=True)
class Takedown:
    """A list of what must not leave the dataset: how many ids and addresses, and some of them."""

    made_at: str
    why: str
    count: int
    some: list[str]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A value and how many rows have it."""

    label: str
    count: int
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Twice:
    """What was said of more than one picture, in nearly the same words."""

    groups: list[Share]  # the largest ones, by their first caption
    near: int  # captions that are in a group
    compared: int


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What was said."""

    rows: int
    engines: list[Share]
    tokens: Measure | None
    words: list[Share]
    twice: Twice
    shown: list[Shown]
    rejected: list[Share]
    refused: list[Shown]  # pictures whose caption was rejected, with the reason and what was said


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one table cost, from the timings in its commits."""

    table: str
    rows: int
    shards: int
    worker_s: float
    read_s: float

    @property
    def rows_per_worker_s(self) -> float:
        """Rows a worker did in a second."""
        return self.rows / self.worker_s if self.worker_s else 0.0


@dataclass(frozen=True, kw_only=True)
class DatasetPage:
    """Everything that the page shows."""

    title: str
    address: str
    made_at: str
    figures: list[tuple[str, str]]
    flow: Flow | None
    measures: list[Measure]
    sheets: list[Sheet]
    groups: list[Group]
    licences: list[Share]
    sources: list[Share]
    formats: list[Share]
    captions: Captions | None
    work: list[Work]
    price_per_hour: float
    versions: list[tuple[str, str, str]]  # table, version, digest
    sample: str  # what the statistics and the pictures were taken from, in words
    removed: list[Share]  # takedowns and contamination, by what was matched
    takedowns: list[Takedown]  # the newest first
