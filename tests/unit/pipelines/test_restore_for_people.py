"""What people see of restore: sheet, files, prompts, and the refusal of what will not fit."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.stores import open_store
from pipelines import before_after, memory_check, prompt_files
from pipelines.recipes import restore as recipes
from pipelines.restored_files import put_if_changed
from pipelines.stages.restorer import Weights
from supir_model.presets import get_network, get_sampling
from tests.helpers import ROOT, images_dataset, photographs, run_entry


def pair(name: str, side: int = 100) -> before_after.Pair:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    after = np.full((side, 2 * side, 3), 200, np.uint8)
    after[60:80, 150:170] = noise
    picture = Image.fromarray(after)
    return before_after.Pair(name, "words " * 400, (side, side // 2), picture.resize((50, 25)).resize(picture.size), picture)


def test_the_detail_is_where_the_structure_is() -> None:
    left, top, right, bottom = before_after.richest(pair("a").after)
    assert right - left == bottom - top == 50, "half the short side"
    assert left <= 150
    assert right >= 170
    assert top <= 60
    assert bottom >= 80
    assert before_after.richest(Image.new("RGB", (1, 9))) == (0, 0, 1, 1)


def test_a_sheet_is_the_same_each_time_and_as_long_as_its_pictures() -> None:
    one, again, three = (before_after.draw([pair("ü" * 300)] * count, count, of=40) for count in (1, 1, 3))
    assert one == again
    sizes = [Image.open(io.BytesIO(data)).size for data in (one, three)]
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] == 2 * (before_after.CELL + before_after.LABEL + before_after.GAP)


def test_files_for_people_are_whole_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    assert put_if_changed(store, "pictures/a.png", b"one")
    assert not put_if_changed(store, "pictures/a.png", b"one")
    assert put_if_changed(store, "pictures/a.png", b"two")

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.restored_files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        put_if_changed(store, "pictures/a.png", b"three")
    assert store.read("pictures/a.png") == b"two"


def test_prompts_of_a_dataset_without_files(tmp_path: Path) -> None:
    source, images = images_dataset(str(tmp_path / "d"), photographs(2), per_shard=1, side_px=16)
    ids = [source.read(ref, ["source_id"]).column("source_id").to_pylist() for ref in images.shards.values()]
    params = prompt_files.by_shard(source, images, "a cat", files=True)
    assert [params(shard) for shard in images.shards] == [{"prompts": {one: "a cat"}} for (one,) in ids]
    assert prompt_files.by_shard(source, images, None, files=True)("00000") == {}


@pytest.mark.parametrize(
    ("text", "found"), [(b" a\n cat \n", "a cat"), (b"\xef\xbb\xbfcat", "cat"), (b"", ""), (b"c\xff", "c\ufffd"), (None, "")]
)
def test_what_a_caption_file_says(tmp_path: Path, text: bytes | None, found: str) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    assert prompt_files._read(open_store(str(tmp_path)), "a.txt") == found


def config(**changes: Any) -> tuple[recipes.RestoreConfig, Weights]:
    made = replace(recipes.tiny(), encoder=None, adaptor=None, device="cpu", upscale=4.0, longest_px=0, **changes)
    return made, Weights(prior=str(ROOT / "priors" / "tiny"), device="cpu")


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source, images = images_dataset(str(tmp_path / "d"), photographs(1), side_px=500)
    shards = list(images.shards.values())
    whole, weights = config()
    monkeypatch.setattr(memory_check, "available_bytes", lambda device: 2**40)
    memory_check.check(whole, weights, source, shards)
    monkeypatch.setattr(memory_check, "available_bytes", lambda device: 3 * 2**30 // 2)
    with pytest.raises(ValueError, match=r"worked at \d+ x \d+ pixels and needs about \d\.\d GiB .* 1\.5 GiB are available") as refused:
        memory_check.check(whole, weights, source, shards)
    advice = str(refused.value).split("would fit: --set ")[1].split(" --set ")
    assert [one.split("=")[0] for one in advice] == [f"sampling.{name}" for name in ("tile_stride_px", "tile_px", "vae_tile_px")]
    from infra.config import override

    taken = whole
    for one in advice:  # the very flags of the message, in their order, are accepted and do fit
        taken = override(taken, *one.split("=", 1))
    memory_check.check(taken, weights, source, shards)
    monkeypatch.setattr(memory_check, "available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="No tile size fits: shrink pictures"):
        memory_check.check(whole, weights, source, shards)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    memory_check.check(whole, weights, source, shards)


def test_the_estimate_counts_weights_once_and_grows_with_what_is_at_work(tmp_path: Path) -> None:
    from supir_model.exact_vae import HOLD_BYTES
    from supir_model.memory import estimate, image_bytes, network_bytes

    prior, settings = ROOT / "priors" / "tiny", get_sampling("tiny")
    small, large = (
        estimate(prior, encoder=None, adaptor=None, height=side, width=side, settings=settings, element_bytes=4) for side in (128, 256)
    )
    assert small.weights == large.weights > 4 * 5_000_000
    assert large.network == 4 * small.network
    tiled = replace(settings, tile_stride_px=64, tile_px=128, vae_tile_px=128)
    tiny = get_network("tiny")
    assert network_bytes(tiny, 4096, 4096, tiled, 4) == network_bytes(tiny, 512, 512, tiled, 4)
    held_bytes = image_bytes(tiny, 4096, 4096, tiled, 4) - image_bytes(tiny, 4096, 4096, settings, 4)
    assert held_bytes == HOLD_BYTES, "what exact tiles hold is bounded"


def test_there_is_some_memory_here() -> None:
    there = memory_check.available_bytes("cpu")
    assert there is None or 2**20 < there < 2**50


def test_help_waits_for_no_library() -> None:
    heavy = "import pipelines.restore, sys; print([name for name in ('torch', 'ray', 'diffusers', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"
    assert "--prompt TEXT" in run_entry("pipelines/restore.py", "--help").stdout
