"""The recipe of the gc job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GcConfig:
    """`input` is any dataset: a corpus, negatives, an export, restorations."""

    input: str
    take_down: tuple[str, ...] = ()  # image ids (sha256 of the bytes), source ids or addresses to take down now
    take_down_list: str = ""  # a text file of such, one a line
    why: str = ""  # kept with the list of ids
    takedowns_of: str = ""  # another dataset whose takedowns count here too: the corpus of an export or of negatives
    grace_h: float = 24.0  # infra.gc.GRACE: files younger than this are left alone

    def __post_init__(self) -> None:
        if self.grace_h < 0:
            raise ValueError(f"grace_h is {self.grace_h}, expected 0 or more hours")


def tiny() -> GcConfig:
    """The demo's corpus."""
    return GcConfig(input="demo-output/corpus")


RECIPES: dict[str, Callable[[], GcConfig]] = {"tiny": tiny}
