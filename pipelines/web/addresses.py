"""Which addresses may be asked. A list of URLs is written by strangers: it must not lead a worker to its own network.

Every address that a name resolves to is checked, and the connection goes to the checked address (the resolver below is the
connector's own), so a name that resolves differently a moment later changes nothing. Redirects are followed by the client one by one,
each with the same checks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipelines.refusal import Refused

MAX_URL_CHARS = 8000  # RFC 9110, 4.1: servers should take 8000; what is longer is an accident or a data: address
SCHEMES = ("http", "https")
RESOLVER_THREADS = 32  # choice: names of slow servers must not hold up the others
TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))  # NAT64: IPv4 within IPv6
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int, int], list[Any]]  # (host, port, family) -> as socket.getaddrinfo


def parse(text: str) -> URL:
    """An address that may be asked as far as its text tells. Raises Refused: url_too_long, bad_url, bad_scheme."""
    if len(text) > MAX_URL_CHARS:
        raise Refused("url_too_long", f"{len(text)} characters, at most {MAX_URL_CHARS} are taken")
    try:
        url = URL(text.strip())
        host, _ = url.host, url.port
    except (ValueError, TypeError) as error:
        raise Refused("bad_url", f"no address of a web page ({type(error).__name__})") from error
    if url.scheme.lower() not in SCHEMES:
        raise Refused("bad_scheme", f"scheme {url.scheme[:20]!r}, expected http or https")
    if not host or any(c <= " " or c == "\x7f" for c in host):
        raise Refused("bad_url", "no host in the address")
    return url.with_fragment(None)


class AddressRules:
    """Public addresses may be asked, and those in `allow`."""

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        self.allow = [ipaddress.ip_network(one) for one in allow]

    def check(self, text: str) -> None:
        """Raise Refused (private_address) for a private, loopback, link-local, multicast, reserved or unspecified address."""
        address = ipaddress.ip_address(text.split("%", 1)[0])
        meant = [address, *_embedded(address)]
        if any(one in network for one in meant for network in self.allow if one.version == network.version):
            return
        if not all(_is_public(one) for one in meant):
            raise Refused("private_address", f"{address} is not a public address: it is never asked (web.allow_networks permits it)")

    def check_literal(self, url: URL) -> None:
        """The same for a URL whose host is an address itself: connectors do not resolve those."""
        try:
            ipaddress.ip_address((url.host or "").split("%", 1)[0])
        except ValueError:
            return
        self.check(url.host or "")


def _embedded(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in TRANSLATED) or int(address) >> 32 == 0:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def _is_public(address: Address) -> bool:
    special = (address.is_private, address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved,
               address.is_unspecified, getattr(address, "is_site_local", False))
    mapped = isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or any(address in n for n in TRANSLATED))
    return mapped or (address.is_global and not any(special))


def lookup(host: str, port: int, family: int) -> list[Any]:
    """The system's resolver."""
    return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp's connector, and hands over addresses that passed the rules."""

    def __init__(self, rules: AddressRules, ask: Lookup = lookup) -> None:
        self.rules = rules
        self.ask = ask
        self.pool = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Every address of a name. Raises Refused: dns, private_address (of any of them)."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.pool, self.ask, host, port, family)
        except socket.gaierror as error:
            again = error.errno == socket.EAI_AGAIN
            raise Refused("dns", f"the name {host} does not resolve ({error.strerror})", transient=again) from error
        except (UnicodeError, OSError) as error:
            raise Refused("dns", f"the name {host[:80]!r} cannot be resolved ({type(error).__name__})") from error
        addresses = list(dict.fromkeys((kind, place[0]) for kind, _, _, _, place in found))
        for _, address in addresses:
            self.rules.check(address)
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
                for kind, address in addresses]

    async def close(self) -> None:
        """Let the threads go."""
        self.pool.shutdown(wait=False, cancel_futures=True)
