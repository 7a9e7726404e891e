"""Drawn timesteps follow the distribution that the recipe names: the share below each timestep is the closed form's."""

from __future__ import annotations

from math import log
from statistics import NormalDist
from typing import Any

import pytest

from training import sequence
from training.timesteps import TIMESTEPS, TimestepOptions, timestep

DRAWS = 4000
BAND = 1.95 / DRAWS**0.5  # Kolmogorov-Smirnov at 0.1 %, on fixed draws
LOGIT_NORMAL = NormalDist(0.5, 0.8)
CASES: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda x: x),
    ({"kind": "logit_normal", "mean": 0.5, "std": 0.8}, lambda x: LOGIT_NORMAL.cdf(log(x / (1 - x)))),
    ({"kind": "cubic"}, lambda x: 1 - (1 - x) ** (1 / 3)),
    ({"shift": 3.0}, lambda x: x / (3 - 2 * x)),  # the inverse of x = 3 u / (1 + 2 u)
    # a shift of 3 moves every logit by log 3
    ({"kind": "logit_normal", "mean": 0.5, "std": 0.8, "shift": 3.0}, lambda x: LOGIT_NORMAL.cdf(log(x / (1 - x) / 3))),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "cdf"), CASES, ids=[" ".join(map(str, fields.values())) or "uniform" for fields, _ in CASES])
def test_the_share_below_each_timestep_is_the_closed_form(fields: dict[str, Any], cdf: Any) -> None:
    options = TimestepOptions(**fields)
    drawn = sorted(timestep(options, sequence.uniform(7, "timestep", position)) for position in range(DRAWS))
    assert drawn[0] >= 0
    assert drawn[-1] < TIMESTEPS
    worst = max(abs(sum(t < edge for t in drawn) / DRAWS - cdf(edge / TIMESTEPS)) for edge in range(20, TIMESTEPS, 20))
    assert worst < BAND, f"{worst:.3f} apart somewhere"


@pytest.mark.parametrize("kind", ["uniform", "logit_normal", "cubic"])
def test_ends_and_order(kind: Any) -> None:
    options = TimestepOptions(kind=kind)
    found = [timestep(options, u) for u in (0.0, 0.1, 0.5, 0.9, 1 - 2.0**-53)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == TIMESTEPS - 1


def test_uniform_is_what_runs_had_before_there_was_a_choice() -> None:
    assert all(timestep(TimestepOptions(), u) == int(u * TIMESTEPS) for u in (0.0, 0.123456, 0.999999))


def test_what_is_no_distribution_teaches() -> None:
    with pytest.raises(ValueError, match=r"batch\.timestep\.std is 0\.0, expected above 0"):
        TimestepOptions(kind="logit_normal", std=0.0)
