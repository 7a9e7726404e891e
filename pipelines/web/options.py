"""How the web is asked. None of it decides what a row's bytes are, so changing it makes no committed shard stale."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

VERSION = "0.1"  # of the agent that servers see


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """Identity, limits and patience of one worker. `host_per_s` is the whole job's: workers share it (see `shared_by`)."""

    agent: str = "open-supir"  # the name that robots.txt and X-Robots-Tag may address
    contact: str = ""  # a page or a mail address that a server's owner can turn to; required before anything is asked for
    in_flight: int = 64  # choice: requests of a worker at one time; hides 200 ms of latency at 300 images/s
    host_in_flight: int = 4  # choice: of these to one host; browsers open 6
    host_per_s: float = 10.0  # choice: requests to one host by the whole job; 0: no limit
    connect_s: float = 10.0
    idle_s: float = 20.0  # choice: longest silence within an answer
    deadline_s: float = 120.0  # choice: one request with its redirects and body; a photograph of 20 MB at 170 kB/s
    attempts: int = 3  # choice: of what may be transient; `retry_failed` asks again another day
    backoff_s: float = 1.0  # doubles with each attempt, times a random factor of 0.5 to 1
    longest_wait_s: float = 60.0  # choice: a server that asks for a longer pause (Retry-After, Crawl-delay) is not waited for
    max_redirects: int = 5  # RFC 9309 asks for five in robots.txt; the same for photographs
    shard_bytes: int = 512 * 2**20  # choice: twice a shard; what would overfill it fails (`shard_full`), and a retry puts it into a new one
    robots: bool = True  # honour robots.txt; false for mirrors of your own
    opt_out: bool = True  # honour X-Robots-Tag and TDM-Reservation
    allow_networks: tuple[str, ...] = ()  # private ranges that may be asked all the same: a mirror of your own, tests

    def __post_init__(self) -> None:
        if min(self.in_flight, self.host_in_flight, self.attempts) < 1 or min(self.deadline_s, self.connect_s, self.idle_s) <= 0:
            raise ValueError("web: in_flight, host_in_flight and attempts must be at least 1, and the times above 0")
        for network in self.allow_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"web.allow_networks: {network!r} is no network ({error}): expected e.g. 10.1.0.0/16") from error

    @property
    def user_agent(self) -> str:
        """The header that says who asks."""
        return f"{self.agent}/{VERSION} ({f'+{self.contact}; ' if self.contact else ''}builds an image corpus)"

    def shared_by(self, workers: int) -> WebOptions:
        """One worker's part of the rate that the job may reach at a host."""
        return replace(self, host_per_s=self.host_per_s / max(1, workers))

    def check_shared(self, workers: int) -> None:
        """Raise ValueError where the rate that the job may reach cannot be shared, because nobody knows how many workers there will be."""
        if workers < 1 and self.host_per_s:
            raise ValueError(f"web.host_per_s={self.host_per_s:g} is what the whole job may ask of a host a second, and workers.workers=0 "
                             "leaves open how many share it: give their number, or host_per_s=0 where a host takes any rate")

    def check_identity(self) -> None:
        """Raise ValueError unless a server's owner can find out who asks."""
        if not self.contact:
            raise ValueError("these rows would be asked for on the web, and web.contact is empty: give --set web.contact=<a page or a "
                             "mail address>, so that the owners of the servers can reach you")
