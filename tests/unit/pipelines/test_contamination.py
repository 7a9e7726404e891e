"""Test sets that are kept out: what matches, what it is called, and what is done again when the list changes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.dataset import Dataset
from pipelines import curate, ingest
from pipelines.contamination import read_tests, told
from tests.helpers import images_dataset, photographs, shrunk


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    folder = tmp_path / "DIV2K_valid"
    folder.mkdir()
    for path in photographs(2):
        (folder / f"{path.stem}.png").write_bytes(shrunk(path, 400))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four photographs, the first two of which show the test pictures: cropped and mirrored, small and compressed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, path in enumerate(photographs(4)):
        image = Image.open(io.BytesIO(shrunk(path, 400))).convert("RGB")
        if n == 0:
            image = image.crop((0, 0, round(image.width * 0.75), round(image.height * 0.75))).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if n == 1:
            image = image.resize((image.width // 3, image.height // 3))
        image.save(folder / f"{n}.jpg", quality=60)
    return folder


def selected(dataset: Dataset) -> dict[str, tuple[str, str]]:
    def rows(table: str) -> list[dict[str, Any]]:
        return [row for ref in dataset.snapshot(table).shards.values() for row in dataset.read(ref).to_pylist()]

    names = {row["source_id"]: row["position"] for row in rows("inputs")}
    return {names[row["source_id"]]: (row["reason"], row["value"]) for row in rows("selections")}


def run(job: Any, *args: object) -> None:
    assert job.main([str(arg) for arg in args]) == 0


def test_copies_of_test_pictures_are_not_selected_and_nothing_is_measured_again(
        tests: Path, corpus: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    address = tmp_path / "corpus"
    run(ingest, "--input", corpus, "--output", address)
    bounds = ["--set", "rule.min_short_side=40", "--set", "rule.sharpness=none", "--set", "rule.flatness=none"]
    run(curate, "--input", address, *bounds)
    assert {reason for reason, _ in selected(Dataset(str(address))).values()} == {""}
    here.clear()
    run(curate, "--input", address, *bounds, "--set", f'exclude=["{tests}"]')
    assert here == ["selection 00000"]
    found = selected(Dataset(str(address)))
    names = [f"DIV2K_valid/{path.stem}.png" for path in photographs(2)]
    assert found == {"0.jpg": ("contaminated", names[0]), "1.jpg": ("contaminated", names[1]), "2.jpg": ("", ""), "3.jpg": ("", "")}
    assert f"2 rows of the corpus show 2 of them\n  1 x {names[0]}" in capsys.readouterr().out


def test_a_test_set_may_be_a_tar_or_a_dataset_and_what_cannot_be_read_is_told(tests: Path, tmp_path: Path) -> None:
    plain = read_tests([str(tests)], max_pixels=10**7)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(tests.iterdir()):
            tar.add(path, path.name)
    images_dataset(str(tmp_path / "ds"), photographs(2), side_px=400)
    for other in (tmp_path / "set.tar", tmp_path / "ds"):
        found = read_tests([str(other)], max_pixels=10**7)
        assert found.image_ids == plain.image_ids
        assert np.array_equal(found.words_M4, plain.words_M4)
    (tests / "broken.jpg").write_bytes(b"no image")
    found = read_tests([str(tests)], max_pixels=10**7)
    assert list(found.unreadable) == ["DIV2K_valid/broken.jpg"]
    assert "NOT excluded, could not be read: DIV2K_valid/broken.jpg" in told(found, [])


def test_a_set_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture that can be read"):
        read_tests([str(tmp_path / "empty")], max_pixels=10**7)


def test_a_test_picture_that_was_cut_out_of_a_larger_one_keeps_that_one_out(tmp_path: Path, here: list[str],
                                                                            capsys: pytest.CaptureFixture[str]) -> None:
    """Squares of a fixed size, as benchmarks are made, and a frame of 86 % at any place."""
    photos, tests, address = tmp_path / "photos", tmp_path / "cut", tmp_path / "corpus"
    photos.mkdir()
    tests.mkdir()
    for n, path in enumerate(photographs(4)):
        image = Image.open(io.BytesIO(shrunk(path, 500))).convert("RGB")
        image.save(photos / f"{n}.png")
        side, (width, height) = round(0.55 * min(image.size)), image.size
        square = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
        frame = (round(0.02 * width), round(0.12 * height), round(0.88 * width), round(0.98 * height))
        if n < 2:
            image.crop((square, frame)[n]).resize((200, 200)).save(tests / f"{n}.jpg", quality=60)
    Image.new("RGB", (90, 90), "skyblue").save(tests / "sky.png")
    run(ingest, "--input", photos, "--output", address)
    bounds = ["--input", address, "--set", "rule.min_short_side=40", "--set", "rule.sharpness=none", "--set", "rule.flatness=none"]
    run(curate, *bounds, "--set", f'exclude=["{tests}"]')
    assert selected(Dataset(str(address))) == {"0.png": ("contaminated", "cut/0.jpg"), "1.png": ("contaminated", "cut/1.jpg"),
                                               "2.png": ("", ""), "3.png": ("", "")}
    assert "too flat for a hash, excluded by equal bytes alone: cut/sky.png" in capsys.readouterr().out
    run(curate, *bounds)
    assert "keeps 2 rows out that show pictures of test sets; this run names no test set" in capsys.readouterr().out
