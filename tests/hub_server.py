"""A server on the loopback address that speaks as much of the Hugging Face hub as its own client asks for, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One model, `owner/name`. `sent` replaces the bytes of a file that is sent, not what is said of it; `gone` answers 503."""

    files: dict[str, bytes]
    sent: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)  # files whose connection ends half-way
    gone: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def tree(self) -> bytes:
        """What the hub says of its files: large ones by sha256, the others by a git hash."""
        told = []
        for name, data in self.files.items():
            entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            told.append(entry)
        return json.dumps(told).encode()

    def headers(self, name: str) -> dict[str, str]:
        data = self.files[name]
        etag = hashlib.sha256(data) if name.endswith(".safetensors") else hashlib.sha1(data)
        return {"X-Repo-Commit": COMMIT, "ETag": f'"{etag.hexdigest()}"', "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}


@contextmanager
def hub_server(hub: Hub) -> Iterator[str]:
    """The address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            if hub.gone:
                self._say(503, {}, b"away")
            elif path == "/api/models/owner/name/revision/main":
                self._say(200, {}, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/owner/name/tree/{COMMIT}":
                self._say(200, {}, hub.tree())
            elif name in hub.files:
                self._say(200, hub.headers(name), hub.sent.get(name, hub.files[name]), cut=name in hub.cut)
            else:
                self._say(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

        def _say(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:len(body) // 2] if cut else body)
                self.close_connection = self.close_connection or cut

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and the others do at the start of a process."""
    from huggingface_hub import constants, file_download

    for name, value in {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
                        "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between the client's own tries
