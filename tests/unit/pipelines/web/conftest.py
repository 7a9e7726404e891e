"""A real server in a process of its own, for all tests of a module."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT, photographs, shrunk


@dataclass(frozen=True)
class WebServer:
    ports: dict[str, int]
    log: Path
    picture: bytes

    def url(self, path: str, kind: str = "good") -> str:
        return f"http://127.0.0.1:{self.ports[kind]}{path}"

    def requests(self, path: str, kind: str = "good") -> list[tuple[int, float, str]]:
        """(open at that moment, time, request) of every request of a path so far."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines())
        return [(count, at, text) for where, asked, count, at, text in lines if where == kind and asked.split("?")[0] == path]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("server")
    picture = shrunk(photographs(1)[0], 64)
    (folder / "picture.png").write_bytes(picture)
    (folder / "log").touch()
    process = subprocess.Popen([sys.executable, "-m", "tests.web_server", str(folder / "picture.png"), str(folder / "log")], cwd=ROOT,
                               stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield WebServer(json.loads(process.stdout.readline()), folder / "log", picture)
    finally:
        process.kill()
        process.wait()
