"""When a caption job is to stop itself: too many captions rejected or failed, or, where that is expected, too few."""

from __future__ import annotations

from dataclasses import dataclass

from infra.ledger import Ledger

NOT_ASKED = "not_selected"  # rows that no captioner saw


@dataclass(frozen=True, kw_only=True)
class RejectBand:
    """The share of captions (0 to 1) that may be rejected or failed, once `min_rows` were asked for."""

    lowest: float = 0.0
    highest: float = 0.2  # choice: honest captioners stay below a twentieth; a broken one is near 1
    min_rows: int = 500  # choice: at 0.2 the standard deviation of the rate is 0.018

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 1 or self.min_rows < 1:
            raise ValueError(f"band: lowest {self.lowest}, highest {self.highest}, min_rows {self.min_rows}: expected 0 <= lowest <= "
                             "highest <= 1 and min_rows of 1 or more")

    def left_by(self, ledger: Ledger) -> str | None:
        """Why a job with this ledger stops, or None."""
        reasons = {reason: count for reason, count in {**ledger.rejected, **ledger.failed}.items() if reason != NOT_ASKED}
        asked = ledger.total - ledger.rejected.get(NOT_ASKED, 0)
        rate = sum(reasons.values()) / max(1, asked)
        if asked < self.min_rows or self.lowest <= rate <= self.highest:
            return None
        by_reason = ", ".join(f"{reason} {count / asked:.1%}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
        return (f"{rate:.1%} of {asked} captions were rejected or failed ({by_reason or 'none'}), expected {self.lowest:.1%} to "
                f"{self.highest:.1%}: look at the outcomes of the shards that were committed, mend the captioner or the checks, or set "
                "band.highest; the same command continues")
