"""What a job does not go on without: a captioner that looks, rates within their band, an estimate that was asked for; and what is seen."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.dataset import Dataset, ShardRef
from infra.ledger import Ledger
from infra.tracking import ListTracker
from pipelines import caption
from pipelines.caption_samples import log_samples
from pipelines.runtime.calibrate import Calibration, calibrate
from pipelines.runtime.cluster import WorkerOptions
from pipelines.runtime.job import Progress, metrics
from pipelines.runtime.plan import plan_tasks
from pipelines.runtime.stage import StageUnusable, version_of
from pipelines.runtime.worker import ShardWorker
from pipelines.stages.caption_checks import CheckSettings
from pipelines.stages.captioner import Asked, Canary, Captioned, Identity, InOrder
from pipelines.stages.captions import CaptionStage
from pipelines.stages.facts import FactsSettings
from pipelines.stages.reject_band import RejectBand
from pipelines.stages.views import SeenSettings
from tests.helpers import IMAGES, ROOT, commit_table, image_row, images_dataset, photographs, shrunk


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB").resize((96, 80))) for path in photographs(3)]


def test_a_band_stops_a_job_that_leaves_it_and_no_other() -> None:
    band = RejectBand(highest=0.2, lowest=0.01, min_rows=100)
    bad = Ledger(total=200, accepted=70, rejected={"not_selected": 90, "refusal": 30}, failed={"truncated": 10})
    told = band.left_by(bad)
    assert told is not None
    assert told.startswith("36.4% of 110 captions were rejected or failed (refusal 27.3%, truncated 9.1%), expected 1.0% to 20.0%")
    assert band.left_by(Ledger(total=150, accepted=10, rejected={"not_selected": 90, "refusal": 50})) is None, "too few to tell"
    assert band.left_by(Ledger(total=200, accepted=190, rejected={"refusal": 10})) is None
    assert "0.0% of 200" in str(band.left_by(Ledger(total=200, accepted=200)))
    with pytest.raises(ValueError, match=r"band: lowest 0\.3, highest 0\.2"):
        RejectBand(lowest=0.3)


def test_a_job_that_rejects_everything_stops_early(tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _ = images_dataset(str(tmp_path), photographs(6), per_shard=1, side_px=64)
    flags = ["--input", str(tmp_path), "--set", "selected_only=false", "--set", "clip_tokenizer=none", "--set", "checks.min_words=500"]
    assert caption.main([*flags, "--set", "band.min_rows=3"]) == 2
    told = "caption: stopped after 3 of 6 shards: 100.0% of 3 captions were rejected or failed (too_short 100.0%)"
    assert told in capsys.readouterr().err
    assert len(here) == 3
    assert not dataset.has("captions")
    assert caption.main([*flags, "--set", "band.highest=1"]) == 0
    assert len(here) == 6, "what was committed was done again"


@dataclass
class Forgetful(InOrder):
    """Describes a picture by its mean, and from the `after`-th on by something else."""

    after: int
    asked: int = 0
    identity = Identity(engine="f", model="f", revision="1")

    def load(self) -> None:
        self.canary = Canary(32)
        self.prove()

    def prove(self) -> None:
        self.canary.check(self, "forgetful")

    def prepare(self, rgb_HWC: Any) -> Any:
        return rgb_HWC

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned]]:
        for one in asked:
            self.asked += 1
            extra = "and a bird" if self.asked > self.after else ""
            text = f"There is a photograph of the number {one.picture_HWC.mean():.3f} in it {extra}"
            yield one, Captioned(text=text, finish_reason="stop", prompt="", decoding="")


def test_a_worker_proves_itself_at_intervals_and_stops_the_job(tmp_path: Path) -> None:
    dataset, images = images_dataset(str(tmp_path), photographs(6), per_shard=2, side_px=64)
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings(), prove_every_rows=2)
    stage.__dict__["engine"] = Forgetful(after=4 + 3)  # the proof at the start asks four times
    worker = ShardWorker(stage, dataset, dataset)
    reports = [worker.run(task) for task in plan_tasks(stage, {"images": images})]
    assert reports[0].ref is not None
    assert "after 2 captions: forgetful said" in str(reports[2].error or reports[1].error)
    assert [entry.key for entry in dataset.store.list("attempts")] == [], "no row is suspected"


def test_an_unusable_stage_fails_no_row(photos: list[np.ndarray]) -> None:
    rows = [image_row(shrunk(path, 64), path.name) for path in photographs(2)]
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings(), prove_every_rows=1)
    stage.__dict__["engine"] = Forgetful(after=5)
    stage.setup()
    images = pa.Table.from_pylist(rows, schema=IMAGES)
    stage.process({"images": images}, {})
    with pytest.raises(StageUnusable, match="cannot be made again"):
        stage.process({"images": images}, {})


def test_what_was_seen_is_original_degraded_or_robust(photos: list[np.ndarray]) -> None:
    degraded = SeenSettings(kind="degraded", size_px=64).identified()
    robust = SeenSettings(kind="robust", size_px=64, prior=str(ROOT / "priors" / "tiny")).identified()
    assert robust.weights.endswith(" own")
    views = [one.build() for one in (SeenSettings(), degraded, robust)]
    for view in views:
        view.load()
    first = [view.show(photos[0], "a") for view in views]
    assert [one.shape for one in first] == [(80, 96, 3), (64, 64, 3), (64, 64, 3)]
    assert all(one.dtype == np.uint8 for one in first)
    assert np.array_equal(first[2], views[2].show(photos[0], "a"))
    assert not np.array_equal(first[1], views[1].show(photos[0], "b")), "every image has a degradation of its own"
    assert not np.array_equal(first[1], first[2])
    assert [view.describe("a") for view in views] == ["original", "degraded real_esrgan seed 0", "robust real_esrgan seed 0"]


def test_what_was_seen_is_in_the_row_and_in_the_version() -> None:
    rows = [image_row(shrunk(path, 80), path.name) for path in photographs(2)]
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings())
    other = replace(stage, seen=SeenSettings(kind="degraded", size_px=64))
    said = [one.process({"images": pa.Table.from_pylist(rows, schema=IMAGES)}, {}).table for one in (stage, other)]
    assert [set(one.column("seen").to_pylist()) for one in said] == [{"original"}, {"degraded real_esrgan seed 0"}]
    assert said[0].column("caption").to_pylist() != said[1].column("caption").to_pylist()
    assert version_of(stage) != version_of(other)


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "robust"}, "needs an autoencoder"), ({"kind": "degraded", "degradation": "rain"}, "seen.degradation is 'rain'"),
    ({"kind": "robust", "prior": "/nowhere"}, "no folder of weights"),
])
def test_views_that_cannot_be_shown_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeenSettings(**changes).identified()


def test_an_estimate_is_arithmetic_on_what_was_measured(tmp_path: Path) -> None:
    took = Calibration(setup_s=60, rows=100, seconds=50, memory_bytes=3 * 2**30, gpu_memory_bytes=30 * 2**30)
    assert took.estimate(20_000_000, 64, 2.5) == (
        "measured on 100 rows after a warm-up: 2.00 rows/s a worker, 60 s to set up, 3.0 GiB of memory and 30.0 GiB of its GPU; 20000000 "
        "rows on 64 workers: 43.42 hours, cost 6,947.11")
    dataset, images = images_dataset(str(tmp_path), photographs(4), per_shard=4, side_px=64)
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings())
    found = Calibration(**calibrate(stage, dataset.store.url, plan_tasks(stage, {"images": images})[0], 3))
    assert found.rows == 3
    assert found.seconds > 0
    assert not dataset.has("captions")


def test_an_estimate_counts_the_rows_that_cost_time(tmp_path: Path) -> None:
    dataset, images = images_dataset(str(tmp_path), photographs(4), per_shard=4, side_px=64)
    rows = dataset.read(images.shards["00000"], ["image_id", "source_id"])
    chosen = commit_table(dataset, "selections", [rows.append_column("accepted", pa.array([False, False, False, True]))])
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings())
    task = plan_tasks(stage, {"images": images, "selections": chosen})[0]
    found = Calibration(**calibrate(stage, dataset.store.url, task, 3))
    assert found.rows == 1
    nothing = commit_table(dataset, "selections", [rows.append_column("accepted", pa.array([False] * 4))], {"other": 1})
    with pytest.raises(ValueError, match="shard 00000 holds no row to try"):
        calibrate(stage, dataset.store.url, plan_tasks(stage, {"images": images, "selections": nothing})[0], 3)


def test_progress_tells_rates_waiting_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.monotonic()
    progress = Progress(name="caption", shards=4, workers=WorkerOptions(price_per_hour=7.2), started=now - 100)
    timings = {"images": 50.0, "tokens": 4000.0, "wait_s": 5.0, "model_s": 45.0}
    ledger = Ledger(total=60, accepted=40, rejected={"not_selected": 10, "refusal": 10})
    progress.add(ShardRef(table="captions", version="1", shard="00000", key="k", path="p", rows=40, sha256="", digest="",
                          outcomes_path=None, ledger=ledger, inputs={}, stage_version=1, attempt="a", timings=timings), 50.0)
    line = capsys.readouterr().err
    assert re.fullmatch(r"caption: 1/4 shards, 60 rows, 0\.6 rows/s, 0\.5 images/s, 40 tokens/s, 0\.1 wait_share, 300 s left; 60 in = 40 "
                        r"accepted \+ 20 rejected \+ 0 failed \(not_selected 10, refusal 10\)\n", line), line
    told = metrics(ledger, progress)
    assert told["worker_s_per_thousand"] == 1000  # 50 s for 50 images: rows that were not selected cost nothing
    assert told["cost_per_thousand"] == 2.0
    assert (told["seconds/model"], told["counted/tokens"]) == (45, 4000)
    assert told["reject_rate/refusal"] == pytest.approx(1 / 6)


def test_samples_are_pictures_with_their_captions(tmp_path: Path, here: list[str]) -> None:
    images_dataset(str(tmp_path), photographs(5), per_shard=2, side_px=64)
    assert caption.main(["--input", str(tmp_path), "--set", "selected_only=false", "--set", "clip_tokenizer=none"]) == 0
    tracker, dataset = ListTracker(), Dataset(str(tmp_path))
    log_samples(tracker, dataset, dataset.snapshot("captions"), 4)
    assert tracker.images == [("captions", step) for step in range(4)]
    timings = dataset.snapshot("captions").shards["00000"].timings
    assert timings["images"] == 2
    assert {"tokens", "wait_s", "check_s", "model_s", "read_s", "total_s", "near_captions"} <= set(timings)
