"""Requests to chat-completion servers: several replicas, timeouts, retries with jitter, back-pressure, answers that are looked at."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.runtime.stage import StageUnusable
from pipelines.stages.captioner import Captioned, Refused, known_picture
from pipelines.stages.endpoint_protocol import SHOWN_CHARS, BadAnswer, ServerSettings, caption_of, request_body, same_model, seconds_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.stages.asking import Decoding

BUSY = (408, 425, 429, 500, 502, 503, 504)  # what another try may mend
REFUSED_ROW = (400, 413, 415, 422)  # this request, not the server
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 30.0  # choice
MAX_ANSWER_BYTES = 1 << 20  # choice: 512 tokens are 4 KB


class Busy(Exception):
    """The server could not answer now; `after_s` is what it asked for."""

    def __init__(self, detail: str, after_s: float | None = None) -> None:
        super().__init__(detail)
        self.after_s = after_s


@dataclass
class Replica:
    """One server: how many of our requests it has, and until when it is left alone."""

    url: str
    out: int = 0
    failures: int = 0  # since its last answer
    rests_until: float = 0.0


class EndpointClient:
    """Requests run on an event loop in a thread of its own; `submit` hands out futures."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._key = os.environ.get(settings.api_key_env, "")
        self._replicas = [Replica(url.rstrip("/")) for url in settings.urls]
        self._window = float(settings.in_flight)
        self._shrunk_at = 0.0
        self._answered_at = 0.0
        self._chance = random.Random(os.urandom(8))  # of waits alone: workers must not come back all at once
        self._session: Any = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
        atexit.register(self.close)

    @property
    def window(self) -> int:
        """How many requests may be out now: halved when a server says that it is busy, one more after each window of answers."""
        return max(1, int(self._window))

    def submit(self, rgb_HWC: NDArray[Any], decoding: Decoding, seed: int) -> Future[Captioned | Refused]:
        """Ask about one picture (uint8 RGB). The future raises StageUnusable when nobody answers any more, or the key is refused."""
        return asyncio.run_coroutine_threadsafe(self._ask(rgb_HWC, decoding, seed), self._loop)

    def check(self) -> None:
        """Ask every replica what it serves. Raises ValueError when none answers, or none of those serves the model."""
        found = asyncio.run_coroutine_threadsafe(self._models(), self._loop).result()
        serving = {url: names for url, names in found.items() if isinstance(names, list)}
        if not serving:
            said = "; ".join(f"{url}: {why}" for url, why in found.items())
            raise ValueError(f"no caption server answers ({said}): start it, or correct captioner.urls")
        model = self.settings.model
        wrong = {url: names for url, names in serving.items() if names and not any(same_model(name, model) for name in names)}
        if len(wrong) == len(serving) and not os.path.isdir(model):  # `transformers serve` lists its cache, not a folder it was given
            raise ValueError(f"captioner.model is {model!r}, but {next(iter(wrong))} serves {', '.join(next(iter(wrong.values()))[:5])}")

    def close(self) -> None:
        """Give the connections back."""
        if self._session is not None and not self._session.closed:
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(timeout=5)

    async def _models(self) -> dict[str, list[str] | str]:
        return dict(zip((one.url for one in self._replicas), await asyncio.gather(*(self._list(one) for one in self._replicas))))

    async def _list(self, replica: Replica) -> list[str] | str:
        end = time.monotonic() + min(self.settings.patience_s, self.settings.timeout_s)
        while True:
            try:
                data = await self._get_json(f"{replica.url}/models")
                return [str(one["id"]) for one in data["data"]]
            except (Busy, BadAnswer, KeyError, TypeError, StageUnusable) as error:
                if time.monotonic() > end or isinstance(error, StageUnusable):
                    return str(error) or type(error).__name__
            await asyncio.sleep(FIRST_WAIT_S)

    async def _ask(self, rgb_HWC: NDArray[Any], decoding: Decoding, seed: int) -> Captioned | Refused:
        body = await asyncio.to_thread(request_body, self.settings, rgb_HWC, decoding, seed)
        begun = failed_at = time.monotonic()
        tries = blamed = 0  # blamed: the tries that failed though the server answers; an outage, however long, is no picture's fault
        while True:
            if tries >= self.settings.tries and self._answered_at <= failed_at:
                await self._probe(len(rgb_HWC), decoding)
            replica = await self._free_replica()
            tries += 1
            replica.out += 1
            try:
                caption = caption_of(await self._post_json(replica, body), self.settings, decoding, seed)
                self._answered(replica)
                return caption
            except BadAnswer as error:
                self._answered(replica)
                blamed, failed_at = blamed + 1, time.monotonic()
                if error.reason == "endpoint_refused" or blamed >= self.settings.tries:
                    return Refused(reason=error.reason, detail=self._clean(error.detail))
                pause_s = self._pause_s(blamed)
            except Busy as error:
                self._rest(replica, error)
                pause_s = 0.0  # another replica may take it at once
                blamed, failed_at = blamed + (self._answered_at > failed_at), time.monotonic()
                if blamed >= self.settings.tries:
                    return Refused(reason="endpoint_failed", detail=f"{blamed} tries while others were answered, the last: {error}")
                silent_s = failed_at - max(begun, self._answered_at)
                if silent_s > self.settings.patience_s:
                    raise StageUnusable(f"no caption server answered for {silent_s:.0f} s (the last said: {error}): look at "
                                        f"{', '.join(self.settings.urls)}; the same command again continues") from error
            finally:
                replica.out -= 1
            await asyncio.sleep(pause_s)

    async def _probe(self, side_px: int, decoding: Decoding) -> None:
        """Ask about a known picture, so that a picture that fails alone can be told from a server that fails."""
        body = await asyncio.to_thread(request_body, self.settings, known_picture(side_px), decoding, 0)
        replica = await self._free_replica()
        try:
            await self._post_json(replica, body)
            self._answered(replica)
        except Busy as error:
            self._rest(replica, error)
        except BadAnswer:
            pass  # neither busy nor well: no evidence

    def _rest(self, replica: Replica, error: Busy) -> None:
        """Leave a server that could not answer alone for as long as it asked, else longer each time."""
        replica.failures += 1
        rest_s = self._pause_s(replica.failures) if error.after_s is None else min(error.after_s, self.settings.patience_s)
        replica.rests_until = max(replica.rests_until, time.monotonic() + rest_s)

    async def _free_replica(self) -> Replica:
        """The replica with the fewest of our requests that does not rest; the one that rests shortest if all do."""
        while True:
            now = time.monotonic()
            awake = [one for one in self._replicas if one.rests_until <= now]
            if awake:
                return min(awake, key=lambda one: (one.out, self._chance.random()))
            rest_s = min(one.rests_until for one in self._replicas) - now
            await asyncio.sleep(rest_s * self._chance.uniform(1.0, 1.2))  # not all at once

    def _pause_s(self, tries: int) -> float:
        """Exponential back-off with full jitter."""
        return self._chance.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries - 1, 10))

    def _answered(self, replica: Replica) -> None:
        self._answered_at, replica.failures = time.monotonic(), 0
        self._window = min(float(self.settings.in_flight), self._window + 1 / self._window)

    def _crowded(self) -> None:
        now = time.monotonic()
        if now - self._shrunk_at > 1.0:  # one crowd is told by many requests at a time
            self._window, self._shrunk_at = max(1.0, self._window / 2), now

    async def _post_json(self, replica: Replica, body: bytes) -> Any:
        return await self._json("POST", f"{replica.url}/chat/completions", body)

    async def _get_json(self, url: str) -> Any:
        return await self._json("GET", url, None)

    async def _json(self, method: str, url: str, body: bytes | None) -> Any:
        import aiohttp

        if self._session is None:
            headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
            self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s),
                                                  connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.request(method, url, data=body, allow_redirects=False) as answer:
                data = await _limited(answer.content)
                self._check_status(answer.status, answer.headers.get("Retry-After"), data, url)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Busy(f"{url}: {type(error).__name__}: {self._clean(str(error))}") from error
        try:
            return json.loads(data)
        except ValueError as error:
            shown = self._clean(data[:SHOWN_CHARS].decode(errors="replace"))
            raise BadAnswer("endpoint_nonsense", f"{url} answered what is no JSON: {shown}") from error

    def _check_status(self, status: int, retry_after: str | None, data: bytes, url: str) -> None:
        if status == 200:
            return
        said = f"{url} answered {status}: {self._clean(data[:SHOWN_CHARS].decode(errors='replace'))}"
        if status in BUSY:
            if status in (429, 503):
                self._crowded()
            raise Busy(said, seconds_from(retry_after))
        if status in REFUSED_ROW:
            raise BadAnswer("endpoint_refused", said)
        hint = f"put its key into {self.settings.api_key_env}" if status in (401, 403) else "correct captioner.urls and captioner.model"
        raise StageUnusable(f"{said}: {hint}")

    def _clean(self, text: str) -> str:
        """Text for a person, without the key, should a server repeat it."""
        return " ".join((text.replace(self._key, "…") if self._key else text).split())


async def _limited(content: Any) -> bytes:
    """A body, up to a limit. Raises BadAnswer beyond it."""
    parts, size = [], 0
    async for part in content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswer("endpoint_nonsense", f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)
