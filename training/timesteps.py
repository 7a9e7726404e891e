"""Which timesteps a training draws: a distribution over 0 … 999 as its quantile function, so that one uniform number of the
counter-based generator decides, whatever the distribution.

    uniform       every timestep alike (the paper states nothing; DDPM)
    logit_normal  t / 1000 = 1 / (1 + exp(-(mean + std z))), z normal: the middle more often (Esser et al. 2024, Eq. 19)
    cubic         t / 1000 = 1 - u^3: noisy ones more often (as T2I-Adapter is trained)

`shift` s then moves each u to s u / (1 + (s - 1) u): above 1 towards noise, below 1 towards clean (Esser et al. 2024, Eq. 23).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from statistics import NormalDist
from typing import Literal

from training.ranges import NUMBER, POSITIVE, check

TIMESTEPS = 1000  # SDXL's schedule
LARGEST = 1 - 2.0**-53  # of the numbers below 1


@dataclass(frozen=True, kw_only=True)
class TimestepOptions:
    """How timesteps are drawn. `mean` and `std` belong to "logit_normal"."""

    kind: Literal["uniform", "logit_normal", "cubic"] = "uniform"  # choice: not stated
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check(self, "batch.timestep", mean=NUMBER, std=POSITIVE, shift=POSITIVE)


def timestep(options: TimestepOptions, u: float) -> int:
    """The timestep, 0 to 999, at the quantile `u` in [0, 1)."""
    share = QUANTILES[options.kind](options, u)
    share = options.shift * share / (1 + (options.shift - 1) * share)
    return min(int(share * TIMESTEPS), TIMESTEPS - 1)


def _logit_normal(options: TimestepOptions, u: float) -> float:
    z = NormalDist(options.mean, options.std).inv_cdf(min(max(u, 2.0**-54), LARGEST))
    return 1 / (1 + exp(-z))


QUANTILES: dict[str, Callable[[TimestepOptions, float], float]] = {
    "uniform": lambda _, u: u,
    "logit_normal": _logit_normal,
    "cubic": lambda _, u: 1 - (1 - u) ** 3,  # 1 - v^3 of v = 1 - u, so that it rises with u
}
