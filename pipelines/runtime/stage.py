"""What a stage is: pure, row-separable work on one shard. A stage has never heard of Ray, storage or commits."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, cast, runtime_checkable

import pyarrow as pa

from infra.dataset import hash_config
from infra.ledger import Outcome


@dataclass(frozen=True)
class Result:
    """Rows that a stage made, and what became of the rows that it did not accept.

    `counted` holds amounts that add up over slices and shards (`tokens`, `wait_s`); they are kept with the commit's timings.
    `sha256_of` says which column holds the hex digits of another one's sha256, so that no byte is hashed twice.
    """

    table: pa.Table
    outcomes: list[Outcome] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
    sha256_of: dict[str, str] = field(default_factory=dict)


class StageUnusable(Exception):
    """Raised by `process` when the stage itself cannot go on (a server is away, a model broke): no row is to blame, the job stops."""


class Stage(Protocol):
    """One kind of work. Implementations are frozen dataclasses: their fields are the configuration, and they travel to workers.

    A field whose metadata says `{"result": False}` (a batch size, a device) does not change what comes out, so that
    another value of it does not make committed shards stale.
    """

    @property
    def name(self) -> str: ...  # of the stage, stable over versions
    @property
    def version(self) -> int: ...  # raise it when the code gives other rows for the same input
    @property
    def table(self) -> str: ...  # the table that it writes
    @property
    def row_id(self) -> str: ...  # the column of the primary table that names a row in outcomes
    @property
    def keeps_rejected(self) -> bool: ...  # rejected rows stand in the table too (selections)

    def setup(self) -> None:
        """Once per worker, before the first row: load models."""

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Work on some rows of the primary table (any slice of the shard); the other tables come whole.

        Pure: the same rows and params give the same result. An exception fails the row that raised it, no other, but for
        StageUnusable, which ends the job.
        """
        ...


@runtime_checkable
class Sparse(Protocol):
    """A stage that passes over most rows of a shard at no cost, which an estimate of time and cost has to know."""

    def work(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> list[int]:
        """Positions of the rows of the primary table that cost time."""
        ...

    def amount(self, params: dict[str, Any]) -> int | None:
        """How many those are, where the parameters of a shard tell."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """A stage that waits (for the network) more than it computes: its worker begins the next shard while it still writes the last one.

    A worker that is lost then costs both.
    """

    @property
    def shards_in_hand(self) -> int: ...


class TravelsAsFields:
    """A base for stages that keep what `setup` built: only their fields are pickled, so a worker's models never travel."""

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


def result_config(stage: Stage) -> dict[str, Any]:
    """The part of a stage's configuration that decides what comes out, groups of settings included."""
    return cast(dict[str, Any], json.loads(json.dumps(_deciding(stage))))


def _deciding(value: Any) -> Any:
    """A value with every dataclass in it as a dictionary of the fields that are not marked `{"result": False}`."""
    if is_dataclass(value):
        return {f.name: _deciding(getattr(value, f.name)) for f in fields(value) if f.metadata.get("result", True)}
    if isinstance(value, (list, tuple)):
        return [_deciding(item) for item in value]
    return value


def version_of(stage: Stage) -> str:
    """The version of the stage's table under this configuration."""
    return hash_config([stage.name, stage.version, result_config(stage)])
