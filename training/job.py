"""What the command tells its workers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from training.recipes import RunConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training. `attempt` names this start of the command."""

    config: RunConfig
    tracking: str | None
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
