"""A web server that misbehaves on request: `python -m tests.web_server PICTURE LOG` prints its ports and serves until it is killed.

Ports: well-behaved robots.txt; one that fails (503); none (404); one that asks for a very long pause. LOG takes a line per request.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROBOTS = {"good": b"User-agent: *\nDisallow: /disallowed/\n", "slow": b"User-agent: *\nCrawl-delay: 100000\n"}
PLACES = {"/to_private": "http://127.0.0.2:{port}/good.png", "/to_metadata": "http://169.254.169.254/latest/meta-data/",
          "/to_file": "file:///etc/passwd", "/loop": "/loop", "/to_mapped": "http://[::ffff:10.0.0.1]:{port}/",
          "/to_disallowed": "/disallowed/a.png", "/to_decimal": "http://2130706434:{port}/good.png"}
ONCE = {"/busy.png": {"status": "429 Busy", "Retry_After": "1"}, "/away.png": {"status": "503 Away", "Retry_After": "1"},
        "/appears.png": {"status": "404 None"}}


def bomb(picture: bytes) -> bytes:
    """A gzip body of 100 kB that unpacks to a picture's head and 20 MB of zeros."""
    machine = zlib.compressobj(1, wbits=31)
    return machine.compress(picture[:64]) + b"".join(machine.compress(bytes(1 << 20)) for _ in range(20)) + machine.flush()


class Server:
    def __init__(self, picture: bytes, log: Path, kind: str) -> None:
        self.picture, self.log, self.kind = picture, log, kind
        self.asked: Counter[str] = Counter()
        self.open = 0
        packed = gzip.compress(picture)
        self.whole: dict[str, dict[str, Any]] = {
            "/noai.png": {"body": picture, "X_Robots_Tag": "noai, noimageai"},
            "/noai_us.png": {"body": picture, "X_Robots_Tag": "open-supir: noindex"},
            "/noai_other.png": {"body": picture, "X_Robots_Tag": "otherbot: noindex, noai"},
            "/tdm.png": {"body": picture, "TDM_Reservation": "1"},
            "/gzip.png": {"body": packed, "Content_Encoding": "gzip"},
            "/half_gzip.png": {"body": packed[:-200], "Content_Encoding": "gzip"},
            "/bomb.png": {"body": bomb(picture), "Content_Encoding": "gzip"},
            "/brotli.png": {"body": picture, "Content_Encoding": "br"},
            "/truncated.png": {"body": picture[:100], "length": len(picture)},
            "/lying.png": {"body": picture, "length": 10**10},
            "/later.png": {"body": b"", "status": "429 Busy", "Retry_After": "86400"},
            "/404.png": {"body": b"nothing here", "status": "404 None"},
            "/500.png": {"body": b"", "status": "500 Broken"},
            "/page.html": {"body": b"<html>a page</html>", "Content_Type": "text/html"},
            "/empty.png": {"body": b""},
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                path = request.split(b" ", 2)[1].decode()
                self.open += 1
                with self.log.open("a") as log:
                    log.write(json.dumps([self.kind, path, self.open, time.time(), request.decode("latin-1")]) + "\n")
                try:
                    if not await self.answer(path, writer):
                        break
                finally:
                    self.open -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def send(self, writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> bool:
        told = {"Content-Length": str(len(body) if length is None else length), **{k.replace("_", "-"): v for k, v in headers.items()}}
        writer.write(f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in told.items()).encode() + b"\r\n" + body)
        return length is None

    async def answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Write an answer; False to hang up behind it."""
        name = path.split("?")[0]
        self.asked[name] += 1
        if name == "/robots.txt":
            status = {"failing": "503 Busy", "none": "404 None"}.get(self.kind, "200 OK")
            return self.send(writer, ROBOTS.get(self.kind, b""), status)
        if name == "/flaky.png" and self.asked[name] == 1:
            return False
        if name in ONCE and self.asked[name] == 1:
            return self.send(writer, b"", **ONCE[name])
        if name in BROKEN:
            return await BROKEN[name](writer, self.picture)
        if name.startswith("/redirect/"):
            left = int(name.rsplit("/", 1)[1])
            return self.send(writer, b"", "302 Found", Location=f"/redirect/{left - 1}" if left else "/good.png")
        if name in PLACES:
            return self.send(writer, b"", "301 Moved", Location=PLACES[name].format(port=writer.get_extra_info("sockname")[1]))
        return self.send(writer, **self.whole.get(name, {"body": self.picture}))


# answers that break off, stay away or never end: False hangs up

async def endless(writer: asyncio.StreamWriter, first: bytes) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
    for chunk in (first, *[b" " * 65536] * 500):
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()
    return False


async def slow(writer: asyncio.StreamWriter, picture: bytes) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + picture[:20])
    for _ in range(100):
        await asyncio.sleep(0.1)
        writer.write(b"\0")
    return False


async def silent(writer: asyncio.StreamWriter, picture: bytes) -> bool:
    await asyncio.sleep(10)
    return False


async def hang_up(writer: asyncio.StreamWriter, picture: bytes) -> bool:
    return False


async def garbage(writer: asyncio.StreamWriter, picture: bytes) -> bool:
    writer.write(b"\x16\x03\x01 this is no HTTP at all\r\n\r\n")
    return False


BROKEN: dict[str, Callable[[asyncio.StreamWriter, bytes], Awaitable[bool]]] = {
    "/huge.png": lambda writer, picture: endless(writer, picture[:64]),
    "/endless.html": lambda writer, picture: endless(writer, b"<!doctype html><html>"),
    "/slow.png": slow, "/silent.png": silent, "/hangup.png": hang_up, "/garbage.png": garbage,
}


async def main(picture: Path, log: Path) -> None:
    ports = {}
    servers = []
    for kind in ("good", "failing", "none", "slow"):
        server = await asyncio.start_server(Server(picture.read_bytes(), log, kind).serve, "127.0.0.1", 0)
        servers.append(server)
        ports[kind] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
