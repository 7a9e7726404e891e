"""Ranges of configuration values. What is outside is refused where it is set, with what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

Range = tuple[str, Callable[[float], bool]]

POSITIVE: Range = ("above 0", lambda x: x > 0)
NOT_NEGATIVE: Range = ("0 or more", lambda x: x >= 0)
SHARE: Range = ("from 0 to 1", lambda x: 0 <= x <= 1)
DECAY: Range = ("0 or more and below 1", lambda x: 0 <= x < 1)
COUNT: Range = ("1 or more", lambda x: x >= 1)
NUMBER: Range = ("a number", lambda x: True)


def check(options: Any, group: str = "", **ranges: Range) -> None:
    """ValueError unless every named field is finite and in its range; `group` is what stands before its name in --set."""
    for name, (expected, inside) in ranges.items():
        value = getattr(options, name)
        if not (isfinite(value) and inside(value)):
            raise ValueError(f"{group}{'.' if group else ''}{name} is {value}, expected {expected}")
