"""Configurations of replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """`input` is the output folder of a training that stopped at a number that is not finite."""

    input: str
    dump: str | None = None  # key of the dump; None: the newest
    prior: str | None = None  # where the frozen weights lie on this machine; None: where they lay in the run
    encoder: str | None = None  # stage 2: the same for the encoder of stage 1
    device: str = "cpu"


def tiny() -> ReplayConfig:
    """The demo's adaptor."""
    return ReplayConfig(input="demo-output/adaptor")


RECIPES: dict[str, Callable[[], ReplayConfig]] = {"tiny": tiny}
