"""The client against a real server that misbehaves in every way that we know of."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from pipelines.refusal import Refused
from pipelines.web.addresses import AddressRules, lookup, parse
from pipelines.web.client import WebClient
from pipelines.web.options import WebOptions
from pipelines.web.robots import opt_outs
from pipelines.web.secrets_in_urls import redact
from tests.unit.pipelines.web.conftest import WebServer

HERE = ("127.0.0.1/32",)
QUICK = dict(contact="corpus@example.org", allow_networks=HERE, deadline_s=1.5, idle_s=1.2, attempts=2, backoff_s=0.05, host_per_s=0.0,
             host_in_flight=64, longest_wait_s=1.5)
MAX_BYTES = 300_000
EXPECTED = {
    "/good.png": "", "/gzip.png": "", "/redirect/3": "", "/noai_other.png": "", "/busy.png": "", "/flaky.png": "", "/away.png": "",
    "/redirect/9": "too_many_redirects", "/loop": "too_many_redirects", "/to_private": "private_address", "/to_metadata": "private_address",
    "/to_mapped": "private_address", "/to_decimal": "bad_url", "/to_file": "bad_scheme", "/to_disallowed": "robots",
    "/disallowed/a.png": "robots", "/noai.png": "noai", "/noai_us.png": "noai", "/tdm.png": "tdm_reserved",
    "/bomb.png": "too_many_bytes", "/lying.png": "too_many_bytes", "/huge.png": "too_many_bytes", "/endless.html": "not_an_image",
    "/page.html": "not_an_image", "/empty.png": "empty", "/brotli.png": "content_encoding", "/truncated.png": "truncated",
    "/half_gzip.png": "truncated",
    "/slow.png": "timeout", "/silent.png": "timeout", "/hangup.png": "connect", "/garbage.png": "bad_answer", "/404.png": "http_404",
    "/500.png": "http_500", "/later.png": "http_429",
}
REJECTED = {"robots", "noai", "tdm_reserved"}


def fetch(urls: list[str], ask: Any = lookup, max_bytes: int = MAX_BYTES, **options: Any) -> list[bytes | Refused]:
    async def run() -> list[bytes | Refused]:
        client = WebClient(WebOptions(**{**QUICK, **options}), max_bytes, ask)
        try:
            return await client.fetch_all(urls, lambda data: data)
        finally:
            await client.close()

    return asyncio.run(run())


def code(answer: bytes | Refused) -> str:
    return answer.code if isinstance(answer, Refused) else ""


def test_every_answer_has_its_reason_and_disturbs_no_other(server: WebServer) -> None:
    answers = dict(zip(EXPECTED, fetch([server.url(path) for path in EXPECTED]), strict=True))
    assert {path: code(answer) for path, answer in answers.items()} == EXPECTED
    for answer in answers.values():
        if isinstance(answer, Refused):
            assert answer.status == ("rejected" if answer.code in REJECTED else "failed")
            assert "://" not in str(answer)
        else:
            assert answer == server.picture
    assert len(server.requests("/robots.txt")) == 1, "robots.txt is kept for its host"
    assert len(server.requests("/disallowed/a.png")) == 0
    assert "User-Agent: open-supir/0.1 (+corpus@example.org;" in server.requests("/good.png")[0][2]
    [before, after] = server.requests("/busy.png")
    assert after[1] - before[1] >= 1.0, "Retry-After was not waited for"
    assert len(server.requests("/404.png")) == len(server.requests("/later.png")) == 1, "asked again for what is final"
    assert len(server.requests("/500.png")) == 2


def test_when_robots_txt_fails(server: WebServer) -> None:
    """RFC 9309: a server error means that nothing is allowed for now; a missing file allows everything."""
    kinds = ("failing", "none", "slow")
    answers = fetch([server.url("/good.png", kind) for kind in kinds])
    assert [code(answer) for answer in answers] == ["robots_unreachable", "", "crawl_delay"]
    assert not server.requests("/good.png", "failing")
    assert code(*fetch([server.url("/disallowed/b.png")], robots=False)) == ""
    assert code(*fetch([server.url("/noai.png")], opt_out=False)) == ""


def test_a_host_is_asked_gently(server: WebServer) -> None:
    urls = [server.url(f"/gentle.png?{i}", "none") for i in range(12)]
    assert {code(one) for one in fetch(urls, host_in_flight=2, host_per_s=20.0)} == {""}
    seen = server.requests("/gentle.png", "none")
    assert max(count for count, _, _ in seen) <= 2
    assert max(at for _, at, _ in seen) - min(at for _, at, _ in seen) >= 0.9 * 11 / 20.0


def test_a_name_is_checked_where_it_leads_and_cannot_change_its_mind(server: WebServer) -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int, family: int) -> list[Any]:
        asked.append(host)
        if host == "gone.test":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        told = {"mixed.test": ["127.0.0.1", "10.0.0.7"], "inside.test": ["192.168.1.1"], "v6.test": ["fe80::1"]}
        places = told.get(host, ["127.0.0.1"] if asked.count(host) == 1 else ["127.0.0.9"])
        return [(socket.AF_INET6 if ":" in place else socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in places]

    port = server.ports["none"]
    hosts = ("first.test", "mixed.test", "inside.test", "v6.test", "gone.test")
    answers = fetch([f"http://{host}:{port}/good.png" for host in hosts], rebinding)
    assert [code(one) for one in answers] == ["", "private_address", "private_address", "private_address", "dns"]
    assert asked.count("first.test") == 1, "the name was resolved again between the check and the connection"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
                                     "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
                                     "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "fec0::1", "::127.0.0.1"])
def test_addresses_that_are_never_asked(address: str) -> None:
    with pytest.raises(Refused, match="not a public address"):
        AddressRules().check(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"])
def test_public_addresses_and_permitted_ones(address: str) -> None:
    AddressRules().check(address)
    AddressRules(("10.1.0.0/16",)).check("10.1.255.1")


@pytest.mark.parametrize(("url", "reason"), [
    ("file:///etc/passwd", "bad_scheme"), ("ftp://x/y", "bad_scheme"), ("data:image/png;base64,A", "bad_scheme"), ("x.jpg", "bad_scheme"),
    ("http://", "bad_url"), ("http://[::1", "bad_url"), ("http://x:99999/", "bad_url"), ("http://x/" + "a" * 10_000, "url_too_long"),
    ("", "bad_scheme"), ("http://127.0.0.1/\u2603", ""), (" https://example.org/a b.jpg ", "")])
def test_what_a_url_may_be(url: str, reason: str) -> None:
    try:
        parse(url)
        found = ""
    except Refused as refused:
        found = refused.code
    assert found == reason


def test_opt_outs_are_read_as_their_inventors_meant_them() -> None:
    assert opt_outs(["noarchive, NoAI"], "open-supir") == {"noai"}
    assert opt_outs(["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], "open-supir") == {"noindex"}
    assert opt_outs(["otherbot: noindex, noai"], "open-supir") == set()
    assert opt_outs(["Open-SUPIR: none"], "open-supir") == {"none"}
    assert opt_outs(["max-image-preview: large"], "open-supir") == set()


def test_secrets_are_taken_out_of_urls() -> None:
    assert redact("https://u:p@h/a.jpg?w=10") == "https://h/a.jpg?w=10"
    assert redact("https://h/a.jpg?X-Amz-Signature=abc&w=1&token=t#f") == "https://h/a.jpg?X-Amz-Signature=REDACTED&w=1&token=REDACTED#f"
    plain = "https://images.example.org/a.jpg?ixid=1&monkey=2&q=85"
    assert redact(plain) == plain


def test_a_shard_holds_no_more_than_it_may(server: WebServer) -> None:
    size = len(server.picture)
    answers = fetch([server.url(f"/good.png?{i}", "none") for i in range(6)], shard_bytes=3 * size)
    assert sorted(code(one) for one in answers) == ["", "", "", "shard_full", "shard_full", "shard_full"]
