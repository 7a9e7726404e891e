"""The ledger: no row vanishes. Every input ends as accepted, rejected(reason, value) or failed(class, message)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Outcome:
    """Why one row was not accepted.

    `reason` is a short code (`too_small`, `TruncatedImage`), `detail` the measured value or the message.
    """

    row_id: str
    status: Literal["rejected", "failed"]
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Ledger:
    """Counts of one shard or one job. `total = accepted + rejected + failed` always holds."""

    total: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(total: int, accepted: int, outcomes: Iterable[Outcome]) -> Ledger:
        """Count the outcomes of a shard."""
        counts: dict[str, Counter[str]] = {"rejected": Counter(), "failed": Counter()}
        for outcome in outcomes:
            counts[outcome.status][outcome.reason] += 1
        ledger = Ledger(total, accepted, dict(sorted(counts["rejected"].items())), dict(sorted(counts["failed"].items())))
        ledger.check()
        return ledger

    def check(self) -> None:
        """Raise ValueError unless every row is accounted for, once."""
        rejected, failed = sum(self.rejected.values()), sum(self.failed.values())
        if self.total != self.accepted + rejected + failed:
            raise ValueError(f"the ledger does not add up: {self.total} in, but {self.accepted} accepted + {rejected} rejected + "
                             f"{failed} failed = {self.accepted + rejected + failed}")

    def __add__(self, other: Ledger) -> Ledger:
        def merged(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return dict(sorted((Counter(a) + Counter(b)).items()))

        return Ledger(self.total + other.total, self.accepted + other.accepted,
                      merged(self.rejected, other.rejected), merged(self.failed, other.failed))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Ledger:
        """The inverse of `to_json`."""
        return Ledger(**data)
