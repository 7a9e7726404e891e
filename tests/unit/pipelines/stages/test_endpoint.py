"""The endpoint captioner against a real HTTP server that is busy, slow, wrong, or gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import caption
from pipelines.runtime.stage import StageUnusable
from pipelines.stages.asking import GREEDY
from pipelines.stages.caption_checks import CheckSettings
from pipelines.stages.captioner import Asked, Captioned, Refused
from pipelines.stages.captions import CaptionStage
from pipelines.stages.endpoint import EndpointCaptioner, EndpointSettings
from pipelines.stages.endpoint_client import EndpointClient
from pipelines.stages.endpoint_protocol import request_body, seconds_from
from supir_model.images import decode
from tests.caption_servers import Mood, Moody, good_answer, moody_server, picture_of
from tests.helpers import IMAGES, image_row, images_dataset, photographs, shrunk


@pytest.fixture
def server() -> Iterator[tuple[str, Moody]]:
    with moody_server() as started:
        yield started


def made(url: str, **changes: Any) -> EndpointCaptioner:
    settings: dict[str, Any] = {"urls": (url,), "model": "tiny", "side_px": 16, "timeout_s": 1.0, "patience_s": 3.0, "tries": 4, **changes}
    captioner = EndpointSettings(**settings).build()
    captioner.load()
    return captioner


def pictures(count: int) -> list[np.ndarray]:
    return [np.full((16, 16, 3), 10 + i, np.uint8) for i in range(count)]


def ask(captioner: EndpointCaptioner, count: int) -> dict[int, Captioned | Refused]:
    asked = (Asked(place=i, picture_HWC=picture, seed=i) for i, picture in enumerate(pictures(count)))
    return {one.place: answer for one, answer in captioner.describe_all(asked)}


def test_many_are_on_their_way_and_each_gets_its_own(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, in_flight=8)
    mood.always = (200, {}, None, 0.03)
    first = ask(captioner, 16)
    assert 4 <= mood.most <= 8
    assert len({answer.text for answer in first.values() if isinstance(answer, Captioned)}) == 16
    assert ask(made(url, in_flight=1), 16) == first, "answers went to other pictures"
    assert isinstance(first[0], Captioned)
    assert (first[0].decoding, first[0].tokens, first[0].finish_reason) == ("greedy", 17, "stop")
    assert mood.asked[-1]["temperature"] == 0.0
    assert mood.asked[-1]["messages"][0]["content"][1]["text"].startswith("Describe this image")


@pytest.mark.parametrize("mood_", [
    (429, {"Retry-After": "0.1"}, b"{}", 0.0), (503, {"Retry-After": "0"}, b"busy", 0.0), (500, {}, b"oh", 0.0),
    (200, {}, b"<html>welcome</html>", 0.0), (200, {}, b"[]", 0.0), (200, {}, b'{"choices": []}', 0.0),
    (200, {}, b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}', 0.0),
    (200, {}, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}', 0.0),
    (200, {}, b"x" * (2 << 20), 0.0), (200, {}, None, 1.3),
])
def test_what_passes_is_tried_again(server: tuple[str, Moody], mood_: Any) -> None:
    url, mood = server
    captioner = made(url)
    calm = ask(captioner, 4)
    mood.moods.extend([mood_, mood_])
    assert ask(captioner, 4) == calm


def test_nonsense_that_stays_fails_the_row_and_no_other(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, tries=2, in_flight=1)
    mood.moods.extend([(200, {}, b"nonsense", 0.0)] * 2 + [(413, {}, b"too large", 0.0)])
    said = ask(captioner, 4)
    refused = [(place, answer.reason) for place, answer in said.items() if isinstance(answer, Refused)]
    assert refused == [(0, "endpoint_nonsense"), (1, "endpoint_refused")]
    assert len(said) == 4


def test_a_picture_that_the_server_did_not_read_is_noticed(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, tries=1, canary=False)
    blind = json.dumps({**good_answer({"messages": [{"content": [{"image_url": {"url": "data:," + PNG}}]}], "temperature": 0, "seed": 0}),
                        "usage": {"prompt_tokens": 20, "completion_tokens": 5}}).encode()
    mood.always = (200, {}, blind, 0.0)
    assert {answer.reason for answer in ask(captioner, 2).values() if isinstance(answer, Refused)} == {"image_not_read"}
    with pytest.raises(ValueError, match=r"a known picture was not captioned: image_not_read"):
        made(url, tries=1)


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def test_a_model_that_does_not_look_or_changes_is_refused(server: tuple[str, Moody]) -> None:
    url, mood = server
    same = json.dumps({"choices": [{"message": {"content": "A photograph."}, "finish_reason": "stop"}]}).encode()
    mood.always = (200, {}, same, 0.0)
    with pytest.raises(ValueError, match="does not look at its input"):
        made(url)
    mood.always = (200, {}, None, 0.0)
    captioner = made(url)
    mood.moods.extend([(200, {}, None, 0.0)] + [(200, {}, json.dumps(
        {"choices": [{"message": {"content": f"Another {i}."}, "finish_reason": "stop"}]}).encode(), 0.0) for i in range(2)])
    with pytest.raises(ValueError, match="cannot be made again"):
        captioner.prove()


def test_a_server_that_is_gone_stops_the_job_after_the_patience(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, patience_s=0.5)
    mood.always = (502, {}, b"gone", 0.0)
    start = time.monotonic()
    with pytest.raises(StageUnusable, match="no caption server answered"):
        ask(captioner, 3)
    assert 0.5 < time.monotonic() - start < 20


def test_outages_cost_no_picture(server: tuple[str, Moody]) -> None:
    """Each outage fails a picture more often than its tries allow, with an answer to another one between them."""
    url, mood = server
    captioner = made(url, tries=3, in_flight=2, patience_s=20.0)
    calm = ask(captioner, 6)
    down = [(502, {"Retry-After": "0"}, b"", 0.02)] * 8
    mood.moods.extend([*down, (200, {}, None, 0.0), *down])
    assert ask(captioner, 6) == calm


def test_a_picture_that_breaks_the_server_fails_alone(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, tries=2, in_flight=1)
    ask(captioner, 3)
    mood.of_picture[picture_of(mood.asked[-1])] = (500, {}, b"out of memory", 0.0)
    said = ask(captioner, 3)  # the last of them: nobody else is answered meanwhile
    assert [type(said[place]) for place in range(3)] == [Captioned, Captioned, Refused]
    assert isinstance(said[2], Refused)
    assert said[2].reason == "endpoint_failed"
    assert "500" in said[2].detail


def says(text: str) -> Mood:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode(), 0.0


BAD: dict[str, Mood] = {
    "rejected control_characters": says("A lake under a \x1b[31mred\x1b[0m sky, with mountains behind it and a boat."),
    "rejected markup": says("<p>A lake under a red sky, with mountains behind it and a boat.</p>"),
    "rejected too_long": says("a lake and a mountain " * 5000),
    "rejected empty": says(" \n "),
    "failed endpoint_nonsense": (200, {}, b'{"choices": [{"mess', 0.0),
    "failed endpoint_refused": (400, {}, b"cannot identify image", 0.0),
    "failed endpoint_failed": (200, {}, None, 1.3),
}


def test_every_bad_answer_costs_its_own_picture_and_the_job_goes_on(server: tuple[str, Moody]) -> None:
    url, mood = server
    settings = EndpointSettings(urls=(url,), model="tiny", side_px=16, timeout_s=1.0, tries=2, in_flight=3, canary=False)
    stage = CaptionStage(captioner=settings, checks=CheckSettings(reasks=0, plain_english=True, min_words=3))
    rows = [image_row(shrunk(path, 32), path.name) for path in photographs(len(BAD) + 2)]
    images = pa.Table.from_pylist(rows, schema=IMAGES)
    stage.setup()
    calm = stage.process({"images": images}, {}).table.to_pylist()
    assert len(calm) == len(rows)
    for row, answer in zip(rows, BAD.values()):
        sent = request_body(settings, stage.engine.prepare(decode(row["bytes"]).rgb_HWC), GREEDY, 0)  # type: ignore[arg-type]
        mood.of_picture[picture_of(json.loads(sent))] = answer
    result = stage.process({"images": images}, {})
    assert [f"{one.status} {one.reason}" for one in result.outcomes] == list(BAD)
    assert [one.row_id for one in result.outcomes] == [row["source_id"] for row in rows[:len(BAD)]]
    assert result.table.to_pylist() == calm[len(BAD):]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_stops_the_job_and_is_not_shown(server: tuple[str, Moody], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url, mood = server
    monkeypatch.setenv("SUPIR_ENDPOINT_KEY", "sk-very-secret")
    captioner = made(url)
    assert mood.keys[-1] == "Bearer sk-very-secret"
    mood.always = (status, {}, b"no such key: sk-very-secret", 0.0)
    with pytest.raises(StageUnusable) as told:
        ask(captioner, 1)
    assert "sk-very-secret" not in str(told.value)
    assert str(status) in str(told.value)


def test_load_goes_to_the_replica_that_answers() -> None:
    with moody_server() as (first, busy), moody_server() as (second, calm):
        captioner = made(first, urls=(first, second), in_flight=4)
        before = len(calm.asked)
        busy.always = (503, {"Retry-After": "30"}, b"", 0.0)
        said = ask(captioner, 30)
        assert all(isinstance(answer, Captioned) for answer in said.values())
        assert len(calm.asked) - before == 30


def test_a_busy_server_gets_fewer_requests(server: tuple[str, Moody]) -> None:
    url, mood = server
    captioner = made(url, in_flight=16)
    mood.moods.extend([(429, {"Retry-After": "0"}, b"", 0.0)] * 3)
    ask(captioner, 8)
    assert captioner._client is not None
    assert captioner._client.window < 16


def test_pauses_grow_and_no_two_workers_come_back_together() -> None:
    client = EndpointClient(EndpointSettings(urls=("http://x/v1",), model="m"))
    for tries, longest_s in ((1, 0.25), (3, 1.0), (20, 30.0)):
        pauses = [client._pause_s(tries) for _ in range(50)]
        assert all(longest_s / 2 <= pause <= longest_s for pause in pauses)
        assert len(set(pauses)) == 50


def test_wrong_servers_are_told_at_once(server: tuple[str, Moody]) -> None:
    url, _ = server
    with pytest.raises(ValueError, match=r"captioner.model is 'other', but .* serves tiny"):
        made(url, model="other")
    with pytest.raises(ValueError, match="no caption server answers"):
        made("http://127.0.0.1:9/v1", patience_s=0.1)


@pytest.mark.parametrize(("model", "flags", "message"), [
    ("tiny", ["captioner.urls=[\"http://127.0.0.1:9/v1\"]"], "no caption server answers (http://127.0.0.1:9/v1: "),
    ("other", [], "captioner.model is 'other', but http://127.0.0.1:"),
])
def test_a_job_without_its_server_ends_before_any_row(server: tuple[str, Moody], tmp_path: Path, here: list[str], model: str,
                                                      flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _ = images_dataset(str(tmp_path), photographs(1), side_px=32)
    changes = [f'captioner.urls=["{server[0]}"]', f"captioner.model={model}", "captioner.patience_s=0.1", "selected_only=false", *flags]
    assert caption.main(["--recipe", "endpoint", "--input", str(tmp_path), *[word for one in changes for word in ("--set", one)]]) == 2
    assert message in capsys.readouterr().err
    assert not dataset.has("captions")
    assert len(here) == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"urls": ()}, r"captioner.urls is \[\], expected base addresses such as http://gpu-1:8000/v1"),
    ({"urls": ("gpu-1:8000",)}, r"captioner.urls is \['gpu-1:8000'\], expected base addresses"),
    ({"urls": ("http://a:b@gpu-1/v1",)}, "holds a password: put the key into the environment variable SUPIR_ENDPOINT_KEY"),
    ({"question": "What is <image>?"}, "contains '<image>', which marks a picture's place: leave it out"),
    ({"system": "<image>"}, "contains '<image>'"),
    ({"in_flight": 0}, "captioner.in_flight is 0, expected 1 or more"), ({"side_px": 0}, "captioner.side_px is 0, expected 1 or more"),
    ({"timeout_s": 0}, "timeout_s 0, .* expected more than 0"),
])
def test_settings_teach(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EndpointSettings(**{"urls": ("http://x/v1",), "model": "m", **change})


def test_retry_after_is_seconds_or_a_date() -> None:
    assert seconds_from("7") == 7.0
    assert seconds_from(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=3)
    assert seconds_from("soon") is None
    assert seconds_from(None) is None
