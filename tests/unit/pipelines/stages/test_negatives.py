"""Negative samples by a random prior of the tiny network: what they depend on, what they carry, what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.dataset import Dataset
from infra.holdout import is_held_out
from pipelines import negatives
from pipelines.negatives_review import WORSE_WHEN, Pair, review, sheet
from pipelines.recipes.negatives import RECIPES
from pipelines.runtime.stage import version_of
from pipelines.stages.negatives import CHANGED, FIG_19, SCHEMA, SEC_3_2, NegativeSettings, NegativesStage, find_fault
from pipelines.stages.parents import ParentChoice, choose_parents
from tests.corpora import random_prior
from tests.helpers import IMAGES, commit_table, image_row, images_dataset, photographs, shrunk

SETTINGS = NegativeSettings(size_px=64, steps=4)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_prior(tmp_path_factory.mktemp("prior") / "random")


@pytest.fixture(scope="module")
def stage(prior: str) -> NegativesStage:
    stage = NegativesStage(settings=SETTINGS, prior=prior, weights="w", device="cpu")
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def images() -> pa.Table:
    rows = [image_row(shrunk(path, 96), path.name) | {"attribution": "A. Photographer"} for path in photographs(4)]
    return pa.Table.from_pylist(rows, schema=IMAGES)


def everyone(images: pa.Table) -> dict[str, Any]:
    return {"parents": images.column("source_id").to_pylist()}


def test_rows_carry_parent_licence_and_all_that_makes_them_again(stage: NegativesStage, images: pa.Table) -> None:
    from supir_model.images import decode

    result = stage.process({"images": images}, {"parents": [images.column("source_id")[2].as_py()]})
    assert result.table.schema == SCHEMA
    assert [(o.status, o.reason) for o in result.outcomes] == [("rejected", "not_chosen")] * 3
    row, parent = result.table.to_pylist()[0], images.to_pylist()[2]
    assert row["parent_image_id"] == parent["image_id"]
    assert row["image_id"] == hashlib.sha256(row["bytes"]).hexdigest() != parent["image_id"]
    assert row["attribution"] == f"A. Photographer; {CHANGED}"
    assert (row["licence"], row["source_url"]) == (parent["licence"], parent["source_url"])
    assert (row["strength"], row["steps"], row["guidance_scale"], row["negative_prompt"]) == (0.5, 4, 7.5, "")
    assert row["seed"] == SETTINGS.seed_for(parent["image_id"])
    assert row["prompt"] == SETTINGS.prompt_for(parent["image_id"])
    assert decode(row["bytes"]).rgb_HWC.shape == (64, 64, 3)


def test_a_sample_does_not_depend_on_slices_or_on_the_other_parents(stage: NegativesStage, images: pa.Table) -> None:
    whole = stage.process({"images": images}, everyone(images)).table
    assert whole.num_rows == 4
    slices = [stage.process({"images": images.slice(low, 2)}, everyone(images)).table for low in (0, 2)]
    alone = stage.process({"images": images}, {"parents": [images.column("source_id")[3].as_py()]}).table
    assert pa.concat_tables(slices).equals(whole)
    assert alone.to_pylist() == whole.slice(3).to_pylist()


def test_a_batch_gives_the_same_pictures_but_for_rounding(stage: NegativesStage, images: pa.Table) -> None:
    from supir_model.images import decode

    batched = replace(stage, batch_size=4)
    batched.__dict__["painter"] = stage.painter
    one, four = (s.process({"images": images}, everyone(images)).table.column("bytes").to_pylist() for s in (stage, batched))
    for first, second in zip(one, four, strict=True):
        difference = np.abs(decode(first).rgb_HWC.astype(int) - decode(second).rgb_HWC.astype(int))
        assert difference.max() <= 2  # of 255: convolutions add up in another order in a batch


def test_out_of_memory_halves_the_batch_and_goes_on(stage: NegativesStage, images: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipelines.stages.memory import HalvedBatches

    painter, sizes = stage.painter, []
    paint = painter.pipeline

    def small(**asked: Any) -> Any:
        sizes.append(len(asked["image"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return paint(**asked)

    monkeypatch.setattr(painter, "pipeline", small)
    monkeypatch.setattr(painter, "memory", HalvedBatches())
    batched = replace(stage, batch_size=4)
    batched.__dict__["painter"] = painter
    result = batched.process({"images": images}, everyone(images))
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert result.counted["images"] == result.table.num_rows == 4
    monkeypatch.setattr(painter, "pipeline", paint)
    assert stage.process({"images": images}, everyone(images)).table.equals(result.table)


def test_another_seed_gives_another_picture(prior: str, images: pa.Table, stage: NegativesStage) -> None:
    other = NegativesStage(settings=replace(SETTINGS, seed=1), prior=prior, weights="w", device="cpu")
    one = stage.process({"images": images.slice(0, 1)}, everyone(images)).table.to_pylist()[0]
    other.setup()
    two = other.process({"images": images.slice(0, 1)}, everyone(images)).table.to_pylist()[0]
    assert one["image_id"] != two["image_id"]
    assert one["source_id"] != two["source_id"]


def test_no_rows_give_the_schema(stage: NegativesStage, images: pa.Table) -> None:
    assert stage.process({"images": images.slice(0, 0)}, everyone(images)).table.schema == SCHEMA


def test_a_broken_network_is_not_written_down(stage: NegativesStage, images: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, reason in ((np.nan, "not_a_number"), (0.0, "blank")):
        monkeypatch.setattr(stage.painter, "paint", lambda pictures, ids, value=value: [np.full((64, 64, 3), value) for _ in ids])
        result = stage.process({"images": images}, everyone(images))
        assert result.table.num_rows == 0
        assert {o.reason for o in result.outcomes} == {reason}


def test_a_copy_of_the_parent_is_refused() -> None:
    parent = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert find_fault(parent / 255, parent) == ("equal_to_parent", "mean difference 0.000 of 255")
    assert find_fault((255 - parent) / 255, parent) is None


def test_negatives_that_are_not_worse_are_told() -> None:
    import cv2

    photos = [cv2.resize(cv2.imread(str(path))[..., ::-1], (256, 256), interpolation=cv2.INTER_AREA) for path in photographs(4)]
    worse = [Pair(parent_HWC=one, negative_HWC=cv2.GaussianBlur(one, (0, 0), 4), prompt=SEC_3_2) for one in photos]
    better = [Pair(parent_HWC=one.negative_HWC, negative_HWC=one.parent_HWC, prompt=SEC_3_2) for one in worse]
    assert review(worse).worse
    assert review(worse).describe().startswith("4 pairs of parent and negative: sharpness ")
    assert review(worse).describe().endswith("worse on average, as wanted")
    assert not review(better).worse
    assert "NOT worse on average: look at the sheet; raise negatives.strength or negatives.guidance_scale" in review(better).describe()
    same = [Pair(parent_HWC=one, negative_HWC=one, prompt="") for one in photos]
    assert not review(same).worse
    assert set(review(worse).metrics()) == {f"{who}/{name}" for who in ("parents", "negatives") for name in WORSE_WHEN}
    assert sheet(worse).shape[1] == 4 * 256
    with pytest.raises(ValueError, match="no pair of parent and negative to measure"):
        review([])


def test_prompts_are_the_papers_whole_and_in_parts() -> None:
    ids = [f"{i:064x}" for i in range(400)]
    prompts = [SETTINGS.prompt_for(one) for one in ids]
    whole = sum(prompt in (SEC_3_2, FIG_19) for prompt in prompts)
    assert 0.4 < whole / 400 < 0.6  # half, within four standard deviations
    terms = {term.strip() for wording in (SEC_3_2, FIG_19) for term in wording.split(",")}
    assert {term for prompt in prompts for term in prompt.split(", ")} == terms
    assert prompts == [SETTINGS.prompt_for(one) for one in ids]
    ordered = [prompt for prompt in prompts if prompt not in (SEC_3_2, FIG_19)]
    assert all(_in_order(prompt, SEC_3_2) or _in_order(prompt, FIG_19) for prompt in ordered)


def _in_order(prompt: str, wording: str) -> bool:
    whole = iter(wording.split(", "))
    return all(term in whole for term in prompt.split(", "))


@pytest.fixture
def corpus(tmp_path: Path) -> Dataset:
    dataset, images = images_dataset(str(tmp_path / "corpus"), photographs(), per_shard=4, side_px=48)
    rows = [dataset.read(ref, ["image_id", "source_id"]) for ref in images.shards.values()]
    commit_table(dataset, "selections", [t.append_column("accepted", pa.array([i != 1 for i in range(t.num_rows)])) for t in rows])
    return dataset


def test_parents_are_accepted_spread_and_stable(corpus: Dataset) -> None:
    selections = corpus.snapshot("selections")
    accepted = {row["source_id"]: row["image_id"] for ref in selections.shards.values() for row in corpus.read(ref).to_pylist()
                if row["accepted"]}
    few, more = (choose_parents(corpus, selections, ParentChoice(count=n), seed=0) for n in (3, 6))
    chosen = [one for ids in more.values() for one in ids]
    assert sum(map(len, few.values())) == 3
    assert set(few) == set(selections.shards)
    assert len(chosen) == 6
    assert {one for ids in few.values() for one in ids} < set(chosen)
    assert all(one in accepted and not is_held_out(accepted[one]) for one in chosen)
    everyone = choose_parents(corpus, selections, ParentChoice(fraction=1.0, exclude_heldout=False), seed=0)
    assert sorted(one for ids in everyone.values() for one in ids) == sorted(accepted)
    other = choose_parents(corpus, selections, ParentChoice(count=3), seed=1)
    assert other != few


def test_the_job_makes_a_dataset_of_its_own(corpus: Dataset, prior: str, tmp_path: Path, here: list[str]) -> None:
    arguments = ["--input", corpus.store.url, "--output", str(tmp_path / "bad"), "--set", f"prior={prior}", "--set", "device=cpu",
                 "--set", "negatives.size_px=64", "--set", "negatives.steps=2", "--set", "parents.count=3"]
    assert negatives.main(arguments) == 0
    made = Dataset(str(tmp_path / "bad"))
    pictures = [row for ref in made.snapshot("images").shards.values() for row in made.read(ref).to_pylist()]
    said = [row for ref in made.snapshot("captions").shards.values() for row in made.read(ref).to_pylist()]
    assert len(pictures) == 3
    assert {row["image_id"]: row["caption"] for row in said} == {row["image_id"]: row["prompt"] for row in pictures}
    assert {row["engine"] for row in said} == {"prompt"}
    assert all(row["clip_tokens"] >= 3 for row in said)
    ledger = made.snapshot("images").ledger
    assert (ledger.accepted, ledger.rejected["not_chosen"]) == (3, ledger.total - 3)
    done = len(here)
    assert negatives.main([*arguments, "--set", "batch_size=2"]) == 0
    assert len(here) == done


def test_dry_run_writes_nothing(corpus: Dataset, prior: str, tmp_path: Path, here: list[str]) -> None:
    half = ["--set", "parents.count=none", "--set", "parents.fraction=0.5"]
    arguments = ["--input", corpus.store.url, "--output", str(tmp_path / "bad"), "--set", f"prior={prior}", "--dry-run"]
    assert negatives.main(arguments) == 0
    assert negatives.main([*arguments, *half]) == 0
    assert here == []
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--set", "prior=/nowhere"], "no folder of weights at '/nowhere'"),
    (["--set", "prior=nowhere/sdxl", "--dry-run"], "no folder of weights at 'nowhere/sdxl'"),
    (["--set", "negatives.size_px=100"], "expected a multiple of 32"),
    (["--set", "negatives.strength=0.01"], "walks none"),
    (["--set", "parents.fraction=0.5"], "set one of them"),
    (["--set", "parents.count=0"], "expected 1 or more"),
    (["--output", "corpus"], "a dataset of their own"),
])
def test_errors_before_any_work(corpus: Dataset, prior: str, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str],
                                flags: list[str], message: str) -> None:
    flags = [str(tmp_path / flag) if flag == "corpus" else flag for flag in flags]
    start = ["--input", corpus.store.url, "--output", str(tmp_path / "bad"), "--set", f"prior={prior}"]
    assert negatives.main([*start, *flags]) == 2
    assert message in capsys.readouterr().err
    assert here == []


def test_weights_and_settings_change_the_version_their_place_does_not(stage: NegativesStage) -> None:
    assert version_of(replace(stage, prior="/elsewhere", batch_size=9)) == version_of(stage)
    assert version_of(replace(stage, weights="other")) != version_of(stage)
    assert version_of(replace(stage, settings=replace(SETTINGS, guidance_scale=5.0))) != version_of(stage)


def test_the_papers_recipe() -> None:
    config = RECIPES["paper_100k"]()
    assert (config.parents.count, config.negatives.strength, config.negatives.size_px) == (100_000, 0.5, 1024)
