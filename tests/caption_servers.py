"""Caption servers for tests: `transformers serve`, and one that misbehaves as it is told, both speaking the chat-completions protocol."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers import Server, answers, free_port


class TransformersServe(Server):
    """`transformers serve` of a folder, on the loopback address and the CPU, with no hub."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder)
        self.port, self.model = free_port(), model
        Path(folder, "hf", "hub").mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def command(self) -> list[str]:
        serve = str(Path(sys.executable).parent / "transformers")
        home = f"HF_HOME={self.folder}/hf"
        return ["env", home, "HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=1", serve, "serve", str(self.model), "--host", "127.0.0.1", "--port",
                str(self.port), "--device", "cpu", "--dtype", "float32"]

    def ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.port}/health")


def good_answer(asked: dict[str, Any], model: str = "tiny") -> dict[str, Any]:
    """An honest answer that belongs to the picture, the seed and the temperature that were sent."""
    url = picture_of(asked)
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB")
    drawn = f"{picture.tobytes()!r} {asked['temperature']} {asked['seed'] if asked['temperature'] else ''}"
    name = hashlib.sha256(drawn.encode()).hexdigest()[:12]
    text = f"A photograph of the {name} in a field with some trees, and it is bright."
    return {"model": model, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 600, "completion_tokens": 17}}


Mood = tuple[int, dict[str, str], bytes | None, float]  # status, headers, body or None for a good answer, seconds of waiting


def picture_of(asked: dict[str, Any]) -> str:
    """The data URL of the picture in a request."""
    return str(asked["messages"][-1]["content"][0]["image_url"]["url"])


class Moody:
    """What the server does: the mood of a picture, else the next one, else the lasting one."""

    def __init__(self) -> None:
        self.moods: deque[Mood] = deque()
        self.always: Mood = (200, {}, None, 0.0)
        self.of_picture: dict[str, Mood] = {}  # by its data URL
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.now = self.most = 0
        self.lock = threading.Lock()


@contextmanager
def moody_server(model: str = "tiny") -> Iterator[tuple[str, Moody]]:
    """(base address, its moods) of a real HTTP server in a thread."""
    mood = Moody()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self._say(200, {}, json.dumps({"data": [{"id": model}]}).encode())

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with mood.lock:
                mood.asked.append(asked)
                mood.keys.append(self.headers.get("Authorization"))
                mood.now += 1
                mood.most = max(mood.most, mood.now)
                own = mood.of_picture.get(picture_of(asked))
                status, headers, body, wait_s = own or (mood.moods.popleft() if mood.moods else mood.always)
            time.sleep(wait_s)
            with mood.lock:
                mood.now -= 1
            self._say(status, headers, json.dumps(good_answer(asked, model)).encode() if body is None else body)

        def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # looks so often whether it has to end
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", mood
    finally:
        server.shutdown()
        server.server_close()
