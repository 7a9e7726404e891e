"""Why one thing that was asked for was not taken: the exception that readers and fetchers raise, and stages turn into an Outcome."""

from __future__ import annotations

from typing import Literal

Status = Literal["rejected", "failed"]


class Refused(Exception):
    """A row that was not taken. `code` is the reason in the ledger.

    `rejected`: we decided not to take it (robots, licence, …), and no retry asks again. `transient`: the same request may succeed
    a moment later; `wait_s` is how long the server asked us to wait before that.
    """

    def __init__(self, code: str, message: str, *, status: Status = "failed", transient: bool = False, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Status = status
        self.transient = transient
        self.wait_s = wait_s
