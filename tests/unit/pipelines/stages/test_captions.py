"""The caption stage: accepted rows alone, faults rejected after a bounded number of attempts, rows independent of their batch."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.dataset import Dataset
from pipelines import caption
from pipelines.recipes.caption import RECIPES
from pipelines.runtime.stage import version_of
from pipelines.stages.caption_checks import CheckSettings
from pipelines.stages.captioner import Asked, Captioned, Identity
from pipelines.stages.captions import SCHEMA, CaptionStage, seed_of
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from tests.helpers import IMAGES, ROOT, commit_table, image_row, images_dataset, photographs, shrunk

GOOD = "A quiet lake between green hills under a cloudy sky."


def shard(rows: list[dict[str, object]], rejected: Sequence[int] = ()) -> dict[str, pa.Table]:
    chosen = [{"image_id": row["image_id"], "source_id": row["source_id"], "accepted": i not in rejected} for i, row in enumerate(rows)]
    return {"images": pa.Table.from_pylist(rows, schema=IMAGES), "selections": pa.Table.from_pylist(chosen)}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return [image_row(shrunk(path, 96), path.name) for path in photographs(5)]


def facts_stage(**changes: Any) -> CaptionStage:
    return replace(CaptionStage(captioner=FactsSettings(), checks=CheckSettings(), batch_size=2), **changes)


@dataclass(frozen=True)
class Script:
    """A captioner that says what it was told to, attempt by attempt, and keeps what it was asked."""

    lines: tuple[str, ...]
    asked: list[tuple[int, int]]
    identity = Identity(engine="script", model="script", revision="1")

    def load(self) -> None:
        """Nothing to load."""

    def prepare(self, rgb_HWC: Any) -> Any:
        return rgb_HWC

    def prove(self) -> None:
        """Nothing to prove."""

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned]]:
        for one in asked:
            self.asked.append((one.attempt, one.place))
            yield one, Captioned(text=self.lines[one.attempt], finish_reason="stop", prompt="", decoding="")


def scripted(lines: tuple[str, ...], reasks: int) -> tuple[CaptionStage, Script]:
    stage, script = facts_stage(checks=CheckSettings(reasks=reasks), batch_size=8), Script(lines, [])
    stage.__dict__["engine"] = script
    return stage, script


def test_accepted_rows_are_captioned_and_the_others_accounted_for(rows: list[dict[str, object]]) -> None:
    result = facts_stage().process(shard(rows, rejected=[1, 4]), {})
    assert result.table.schema == SCHEMA
    assert result.table.column("image_id").to_pylist() == [rows[i]["image_id"] for i in (0, 2, 3)]
    assert [(o.row_id, o.status, o.reason) for o in result.outcomes] == [(rows[i]["source_id"], "rejected", "not_selected") for i in (1, 4)]
    first = result.table.to_pylist()[0]
    assert first["caption"].startswith("A photograph in")
    assert (first["engine"], first["verdict"], first["finish_reason"], first["clip_tokens"]) == ("facts", "ok", "stop", None)


def test_no_rows_give_the_schema(rows: list[dict[str, object]]) -> None:
    tables = shard(rows)
    result = facts_stage().process({**tables, "images": tables["images"].slice(0, 0)}, {})
    assert result.table.schema == SCHEMA
    assert (result.table.num_rows, result.outcomes) == (0, [])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_slices_and_batches_change_nothing(rows: list[dict[str, object]], batch_size: int) -> None:
    tables = shard(rows, rejected=[2])
    whole = facts_stage().process(tables, {})
    parts = [facts_stage(batch_size=batch_size).process({**tables, "images": tables["images"].slice(i, 2)}, {}) for i in (0, 2, 4)]
    assert pa.concat_tables([part.table for part in parts]).to_pylist() == whole.table.to_pylist()


def test_the_same_bytes_twice_are_captioned_once(rows: list[dict[str, object]]) -> None:
    twice = [rows[0], {**rows[0], "source_id": "elsewhere"}]
    result = facts_stage().process(shard(twice, rejected=[1]), {})
    assert result.table.num_rows == 1
    assert [o.row_id for o in result.outcomes] == ["elsewhere"]


def test_a_picture_that_does_not_decode_fails_alone(rows: list[dict[str, object]]) -> None:
    cut = {**rows[1], "bytes": bytes(rows[1]["bytes"])[:300]}  # type: ignore[arg-type]
    result = facts_stage().process(shard([rows[0], cut, rows[2]]), {})
    assert result.table.num_rows == 2
    assert [(o.status, o.reason, o.row_id) for o in result.outcomes] == [("failed", "truncated", rows[1]["source_id"])]


def test_a_fault_is_asked_about_again_and_then_accepted(rows: list[dict[str, object]]) -> None:
    stage, script = scripted(("", GOOD), reasks=1)
    result = stage.process(shard(rows), {})
    assert sorted(script.asked) == [(attempt, place) for attempt in (0, 1) for place in range(5)]
    assert set(result.table.column("verdict").to_pylist()) == {"ok_after_1"}


def test_a_fault_that_stays_is_rejected_with_its_reason(rows: list[dict[str, object]]) -> None:
    stage, script = scripted(("tree " * 40, "I'm sorry, I cannot see the image you mean."), reasks=1)
    result = stage.process(shard(rows), {})
    assert len(script.asked) == 10
    assert result.table.num_rows == 0
    assert {o.reason for o in result.outcomes} == {"refusal"}
    assert result.outcomes[0].detail.startswith("I'm sorry")


def test_clip_tokens_are_counted_and_long_captions_kept_whole(rows: list[dict[str, object]]) -> None:
    stage = facts_stage(clip_tokenizer=str(ROOT / "priors/tiny/tokenizer"))
    stage.setup()
    counts = stage.process(shard(rows), {}).table.column("clip_tokens").to_pylist()
    assert all(15 < count < 77 for count in counts)
    assert stage.count_tokens is not None
    assert stage.count_tokens("tree " * 100) == 102


def test_what_changes_the_version() -> None:
    llava = LlavaSettings(model="/a/llava")
    stage = CaptionStage(captioner=llava, checks=CheckSettings(), weights="w1")
    same = [replace(stage, batch_size=99), replace(stage, captioner=replace(llava, model="/b/llava", device="cpu", canary=False)),
            replace(stage, clip_tokenizer="/elsewhere")]
    other = [replace(stage, weights="w2"), replace(stage, checks=CheckSettings(min_words=9)),
             replace(stage, captioner=replace(llava, question="What is this?")), replace(stage, captioner=FactsSettings())]
    assert {version_of(one) for one in same} == {version_of(stage)}
    assert len({version_of(one) for one in [stage, *other]}) == 5


def test_what_was_set_up_does_not_travel() -> None:
    stage = facts_stage(clip_tokenizer=str(ROOT / "priors/tiny/tokenizer"))
    fresh = len(pickle.dumps(stage))
    stage.setup()
    assert len(pickle.dumps(stage)) == fresh
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_seeds_belong_to_image_and_purpose() -> None:
    assert seed_of("a", "x") == seed_of("a", "x")
    assert len({seed_of("a", "x"), seed_of("b", "x"), seed_of("a", "y")}) == 3
    assert 0 <= seed_of("a", "x") < 2**63


def test_the_job_writes_a_table_and_does_nothing_twice(tmp_path: Path, here: list[str]) -> None:
    dataset, images = images_dataset(str(tmp_path / "corpus"), photographs(4), per_shard=2, side_px=96)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array([True, False])) for t in rows])
    arguments = ["--input", str(tmp_path / "corpus"), "--set", "clip_tokenizer=none"]
    assert caption.main(arguments) == 0
    assert Dataset(str(tmp_path / "corpus")).snapshot("captions").ledger.rejected == {"not_selected": 2}
    assert here == ["caption 00000", "caption 00001"]
    assert caption.main([*arguments, "--set", "batch_size=1"]) == 0
    assert len(here) == 2
    assert caption.main([*arguments, "--set", "checks.min_words=3"]) == 0
    assert len(here) == 4


def test_without_selections(tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    images_dataset(str(tmp_path), photographs(2), side_px=96)
    assert caption.main(["--input", str(tmp_path), "--set", "clip_tokenizer=none"]) == 2
    assert "no published table 'selections'; found: images. Run the job that writes it first" in capsys.readouterr().err
    assert caption.main(["--input", str(tmp_path), "--set", "clip_tokenizer=none", "--set", "selected_only=false"]) == 0
    assert Dataset(str(tmp_path)).snapshot("captions").rows == 2


@pytest.mark.parametrize(("flags", "message"), [
    (["--set", "clip_tokenizer=/nowhere"], "no folder of weights at '/nowhere'"),
    (["--recipe", "llava_13b", "--set", "captioner.model=/nowhere/llava"], "no folder of weights"),
    (["--recipe", "llava13b"], "did you mean 'llava_13b'?"),
    (["--set", "captoiner.model=x"], "did you mean 'captioner'?"),
    (["--set", "batch_size=0"], "batch_size is 0"),
])
def test_errors_before_any_work(tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str], flags: list[str],
                                message: str) -> None:
    dataset, _ = images_dataset(str(tmp_path), photographs(1), side_px=96)
    assert caption.main(["--input", str(tmp_path), "--set", "selected_only=false", *flags]) == 2
    assert message in capsys.readouterr().err
    assert here == []
    assert not dataset.has("captions")


def test_recipes_are_whole_and_named() -> None:
    assert set(RECIPES) == {"tiny", "llava_13b", "llava_7b", "llava_13b_released", "llava_13b_4bit", "llava_next", "llava_onevision",
                            "endpoint"}
    assert all(recipe().captioner.engine in ("facts", "llava", "endpoint") for recipe in RECIPES.values())
    released, greedy = RECIPES["llava_13b_released"]().captioner, RECIPES["llava_13b"]().captioner
    assert isinstance(released, LlavaSettings)
    assert isinstance(greedy, LlavaSettings)
    assert (released.decoding.temperature, released.decoding.top_p) == (0.2, 0.7)
    assert greedy.decoding.temperature == 0
    assert (greedy.max_new_tokens, greedy.canary) == (512, True)
