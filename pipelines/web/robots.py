"""What a site permits: robots.txt (RFC 9309), X-Robots-Tag and TDM-Reservation.

When robots.txt cannot be had, RFC 9309 2.3.1 decides: 4xx means that there are no rules, so all is allowed; a server error or no answer
means that nothing is allowed for now, which is a failed row (`robots_unreachable`) that a retry asks for again. img2dataset reads no
robots.txt; datatrove takes a failure for permission.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yarl import URL

from pipelines.refusal import Refused

MAX_BYTES = 500 * 1024  # RFC 9309, 2.5: at least 500 KiB are parsed; the rest is left
KEEP_S = 24 * 3600.0  # RFC 9309, 2.4: not longer than a day
UNREACHABLE_S = 300.0  # choice: a site whose robots.txt failed is asked again after five minutes
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # "none" is noindex and nofollow
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})  # a colon that names no agent


@dataclass(frozen=True)
class Rules:
    """The rules of one site. `parsed` is None where it has none; `problem` is why they could not be had."""

    parsed: Any = None
    problem: str = ""
    read_at: float = 0.0

    def is_fresh(self, now: float) -> bool:
        """Whether they need not be read again."""
        return now - self.read_at < (UNREACHABLE_S if self.problem else KEEP_S)

    def check(self, url: URL, agent: str) -> None:
        """Raise Refused (robots, robots_unreachable) unless the agent may ask for the URL."""
        if self.problem:
            raise Refused("robots_unreachable", f"robots.txt of {url.host}: {self.problem}; without it nothing is asked (RFC 9309)")
        if self.parsed is not None and not self.parsed.can_fetch(str(url), agent):
            raise Refused("robots", f"robots.txt of {url.host} forbids it to {agent}", status="rejected")

    def delay_s(self, agent: str) -> float:
        """Seconds between requests that the site asks for; 0 if it does not."""
        if self.parsed is None:
            return 0.0
        rate = self.parsed.request_rate(agent)
        return max(float(self.parsed.crawl_delay(agent) or 0.0), rate.seconds / max(rate.requests, 1) if rate else 0.0)


def parse(data: bytes, now: float) -> Rules:
    """Rules from the text of a robots.txt."""
    from protego import Protego  # late: `--help` does not need it

    return Rules(Protego.parse(data[:MAX_BYTES].decode("utf-8", "replace")), "", now)


def check_answer(headers: Any, agent: str) -> None:
    """Raise Refused (noai, tdm_reserved) if an answer's headers say that the picture must not be used."""
    found = opt_outs(headers.getall("X-Robots-Tag", ()), agent)
    if found:
        raise Refused("noai", f"X-Robots-Tag: {', '.join(sorted(found))}", status="rejected")
    if headers.get("TDM-Reservation", "").strip() == "1":
        raise Refused("tdm_reserved", "TDM-Reservation: 1", status="rejected")


def opt_outs(values: Iterable[str], agent: str) -> set[str]:
    """The directives among those that forbid us, addressed to everyone or to `agent`."""
    found = set()
    for value in values:
        addressed = ""
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() in WITH_VALUE:
                continue
            if colon:
                addressed, part = name.strip(), rest
            if part.strip() in OPT_OUTS and addressed in ("", "*", agent.lower()):
                found.add(part.strip())
    return found
