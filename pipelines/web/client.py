"""The client: many requests in flight, each hop checked, retried where that may help, and a reason for everything that fails.

Reasons: `url_too_long`, `bad_url`, `bad_scheme`, `dns`, `private_address`, `connect`, `tls`, `timeout`, `http_<status>`,
`too_many_redirects`, `truncated`, `bad_answer`, `too_many_bytes`, `not_an_image`, `unsupported_format`, `content_encoding`, `empty`,
`robots_unreachable`, `crawl_delay`, `shard_full`; and rejected: `robots`, `noai`, `tdm_reserved`. No message holds a URL: the host is told.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from pipelines.refusal import Refused
from pipelines.web import robots
from pipelines.web.addresses import AddressRules, CheckedResolver, Lookup, lookup, parse
from pipelines.web.body import Room, read, read_photograph
from pipelines.web.hosts import Host
from pipelines.web.options import WebOptions

REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
BUSY = (429, 503)  # the whole host is left alone for a while, not only this URL
BUFFER_BYTES = 1 << 20  # measured: aiohttp's 64 KiB stop and restart the socket at every chunk
# What is done with a photograph of up to so many bytes takes 3 ms, and is done in the loop: handing it to a thread and taking it back costs
# more than that thread saves (measured: 0.63 s of CPU for 500 photographs in place of 0.55).
LOOP_BYTES = 4 * 2**20
Answer = bytes | URL
T = TypeVar("T")


class WebClient:
    """One worker's connection to the web. Lives in one event loop; keeps connections, rates and robots.txt between shards."""

    def __init__(self, options: WebOptions, max_bytes: int, ask: Lookup = lookup) -> None:
        self.options = options
        self.max_bytes = max_bytes
        self.rules = AddressRules(options.allow_networks)
        self.hosts: dict[URL, Host] = {}
        self.room = Room(options.shard_bytes)
        self.places = asyncio.Semaphore(options.in_flight)
        self.chance = random.Random()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="photograph")
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self.rules, ask), limit=0, limit_per_host=0, ttl_dns_cache=300)
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=options.connect_s, sock_read=options.idle_s)
        self.session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
            read_bufsize=BUFFER_BYTES, headers={"User-Agent": options.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"})

    async def close(self) -> None:
        """Close the connections."""
        await self.session.close()
        self.pool.shutdown(wait=False)

    async def fetch_all(self, urls: Sequence[str], use: Callable[[bytes], T]) -> list[T | Refused]:
        """What `use` makes of each photograph, or why there is none. In the order of the URLs."""
        self.room.used = 0
        return list(await asyncio.gather(*(self._fetch_one(url, use) for url in urls)))

    async def _fetch_one(self, url: str, use: Callable[[bytes], T]) -> T | Refused:
        try:
            data = await self.fetch(url)
        except Refused as refused:
            return refused
        if len(data) <= LOOP_BYTES:
            return use(data)
        return await asyncio.get_running_loop().run_in_executor(self.pool, use, data)

    async def fetch(self, text: str) -> bytes:
        """The bytes behind a URL. Raises Refused after the last attempt."""
        url = parse(text)
        for attempt in range(1, self.options.attempts + 1):
            try:
                return await self._follow(url, self._photograph)
            except Refused as refused:
                if not refused.transient or attempt == self.options.attempts:
                    raise
                await asyncio.sleep(self._wait_s(refused, attempt))
        raise AssertionError("the last attempt returns or raises")

    def _wait_s(self, refused: Refused, attempt: int) -> float:
        if refused.wait_s is not None:
            return refused.wait_s
        return self.options.backoff_s * float(2 ** (attempt - 1)) * self.chance.uniform(0.5, 1.0)

    async def _follow(self, url: URL, take: Callable[[Any], Any], ask_robots: bool = True) -> bytes:
        """Hop by hop to an answer that is no redirect. Waiting for a turn does not count against the deadline."""
        left_s = self.options.deadline_s
        for _ in range(self.options.max_redirects + 1):
            self.rules.check_literal(url)
            host = self._host(url)
            if ask_robots and self.options.robots:
                await self._check_robots(url, host)
            async with host.turn(self.places):
                start = time.monotonic()
                answer = await self._ask(url, host, take, left_s)
            if isinstance(answer, bytes):
                return answer
            url, left_s = answer, left_s - (time.monotonic() - start)
        raise Refused("too_many_redirects", f"more than {self.options.max_redirects} redirects, the last to {url.host}")

    def _host(self, url: URL) -> Host:
        origin = url.origin()
        if origin not in self.hosts:
            rate = self.options.host_per_s
            self.hosts[origin] = Host(asyncio.Semaphore(self.options.host_in_flight), 1.0 / rate if rate else 0.0)
        return self.hosts[origin]

    async def _ask(self, url: URL, host: Host, take: Callable[[Any], Any], left_s: float) -> Answer:
        """One request. Errors of the client become reasons."""
        where = url.host
        try:
            async with asyncio.timeout(max(0.0, left_s)), self.session.get(url, allow_redirects=False) as response:
                if response.status in REDIRECTS:
                    return _location(url, response.headers.get("Location", ""))
                if response.status != 200:
                    raise self._not_ok(response, host)
                return bytes(await take(response))
        except TimeoutError as error:
            raise Refused("timeout", f"{where}: no whole answer in time ({type(error).__name__})", transient=True) from error
        except aiohttp.ClientSSLError as error:
            raise Refused("tls", f"{where}: {type(error).__name__}") from error
        except aiohttp.InvalidURL as error:
            raise Refused("bad_url", "the client cannot ask for this address") from error
        except aiohttp.ClientPayloadError as error:
            raise Refused("truncated", f"{where}: the body ended before its announced length", transient=True) from error
        except aiohttp.ClientConnectionError as error:
            raise Refused("connect", f"{where}: {type(error).__name__}", transient=True) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Refused("bad_answer", f"{where}: the answer is no HTTP ({type(error).__name__})") from error

    def _not_ok(self, response: Any, host: Host) -> Refused:
        status = response.status
        wait_s = _retry_after_s(response.headers.get("Retry-After", "")) if status in TRANSIENT else None
        patient = wait_s is None or wait_s <= self.options.longest_wait_s
        if status in BUSY:
            host.pause(min(wait_s if wait_s is not None else self.options.backoff_s, self.options.longest_wait_s))
        asked = f"; it asks for a pause of {wait_s:.0f} s" if wait_s is not None else ""
        return Refused(f"http_{status}", f"{response.url.host} answered {status}{asked}", transient=status in TRANSIENT and patient,
                       wait_s=wait_s)

    async def _photograph(self, response: Any) -> bytes:
        if self.options.opt_out:
            robots.check_answer(response.headers, self.options.agent)
        return await read_photograph(response, self.max_bytes, self.room)

    # robots.txt

    async def _check_robots(self, url: URL, host: Host) -> None:
        async with host.reading:
            if host.rules is None or not host.rules.is_fresh(time.monotonic()):
                host.rules = await self._read_robots(url)
                delay_s = host.rules.delay_s(self.options.agent)
                if delay_s <= self.options.longest_wait_s:
                    host.interval_s = max(host.interval_s, delay_s)
        host.rules.check(url, self.options.agent)
        delay_s = host.rules.delay_s(self.options.agent)
        if delay_s > self.options.longest_wait_s:
            raise Refused("crawl_delay", f"robots.txt of {url.host} asks for {delay_s:.0f} s between requests; web.longest_wait_s is "
                                         f"{self.options.longest_wait_s:.0f}")

    async def _read_robots(self, url: URL) -> robots.Rules:
        place = url.origin().join(URL("/robots.txt"))

        async def text(response: Any) -> bytes:
            return await read(response, robots.MAX_BYTES, cut=True)

        refused = Refused("robots_unreachable", "never asked")
        for attempt in range(1, self.options.attempts + 1):
            try:
                return robots.parse(await self._follow(place, text, ask_robots=False), time.monotonic())
            except Refused as error:
                refused = error
            if not refused.transient or attempt == self.options.attempts:
                break
            await asyncio.sleep(self._wait_s(refused, attempt))
        unavailable = refused.code.startswith("http_4") and refused.code != "http_429"
        if unavailable or refused.code == "too_many_redirects":  # RFC 9309, 2.3.1.2 and 2.3.1.3: as if there were none
            return robots.Rules(read_at=time.monotonic())
        if refused.code in ("dns", "private_address", "connect", "tls", "bad_url"):
            raise refused  # the site itself cannot or must not be reached: say that
        return robots.Rules(problem=refused.code, read_at=time.monotonic())


def _location(url: URL, text: str) -> URL:
    if not text:
        raise Refused("bad_answer", f"{url.host}: a redirect without a Location")
    try:
        target = url.join(URL(text))
    except ValueError as error:
        raise Refused("bad_url", f"{url.host} redirects to what is no address") from error
    checked = parse(str(target))
    if url.scheme == "https" and checked.scheme == "http":
        raise Refused("bad_scheme", f"{url.host} redirects from https to http on {checked.host}")
    return checked.with_user(None) if checked.user else checked


def _retry_after_s(value: str) -> float | None:
    """Seconds from a Retry-After header: a number or a date; None where it says nothing."""
    if value.strip().isdigit():
        return float(value.strip())
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
