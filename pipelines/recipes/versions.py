"""What can be done with the versions of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VersionsConfig:
    """`name` is a tag; `before` and `after` are tags or versions, empty for the current state; `output` is where a copy goes."""

    action: str
    input: str
    output: str = ""
    name: str = ""
    why: str = ""
    table: str = "selections"
    before: str = ""
    after: str = ""


def show() -> VersionsConfig:
    """Tables, versions and tags."""
    return VersionsConfig(action="show", input="demo-output/corpus")


def tag() -> VersionsConfig:
    """Name the current state."""
    return VersionsConfig(action="tag", input="demo-output/corpus")


def diff() -> VersionsConfig:
    """What became of the rows of a table."""
    return VersionsConfig(action="diff", input="demo-output/corpus")


def copy() -> VersionsConfig:
    """The current state, or a tagged one, to another address."""
    return VersionsConfig(action="copy", input="demo-output/corpus")


RECIPES: dict[str, Callable[[], VersionsConfig]] = {"show": show, "tag": tag, "diff": diff, "copy": copy}
