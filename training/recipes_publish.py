"""Configurations of publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """`input` is the output folder of a training, `output` where versions of its weights are kept, side by side."""

    input: str
    output: str
    step: int = 0  # 0: the newest checkpoint
    weights: Literal["average", "last"] = "average"  # the moving average, where the run has one, or the weights of the last update
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # of the file in the official layout; our folder keeps fp32
    model: str = ""  # registered model in MLflow; empty: supir-<encoder or adaptor>-<network>
    licence: str = "not stated"  # of the weights: it depends on the prior's and on the pictures
    back_to: int = 0  # go back to this version instead of publishing one


def tiny() -> PublishConfig:
    """The demo's adaptor."""
    return PublishConfig(input="demo-output/adaptor", output="demo-output/published/adaptor")


def paper() -> PublishConfig:
    """A run on a cluster."""
    return PublishConfig(input="s3://runs/adaptor", output="s3://published/adaptor")


RECIPES: dict[str, Callable[[], PublishConfig]] = {"tiny": tiny, "paper": paper}
