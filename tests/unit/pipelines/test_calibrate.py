"""Bounds from a reference set: of a folder, and of the dataset made of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from pipelines import calibrate, curate, ingest
from pipelines.reference_set import bounds
from pipelines.stages.selection import MAX, MIN, Limit, Threshold, fixed
from tests.helpers import photographs, shrunk

VALUES = np.array([*range(101), np.nan])


def limit(side: str, threshold: Threshold) -> Limit:
    return Limit(measure="noise", side=side, reason="noisy", threshold=threshold, model="")


def test_the_loose_bound_spares_the_reference_and_the_tight_one_is_the_rules_percentile() -> None:
    assert bounds(limit(MIN, Threshold(percentile=5, at_least=0, at_most=9)), VALUES, 1) == Threshold(percentile=5, at_least=1, at_most=5)
    tight = Threshold(percentile=95, at_least=95, at_most=99)
    assert bounds(limit(MAX, Threshold(percentile=95, at_least=0, at_most=9)), VALUES, 1) == tight
    assert bounds(limit(MAX, fixed(3)), VALUES, 1) == fixed(99)
    assert bounds(limit(MIN, fixed(3)), VALUES[-1:], 1) is None


def test_a_folder_and_its_dataset_give_the_same_bounds(tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in photographs(5):
        (photos / f"{path.stem}.png").write_bytes(shrunk(path, 96))
    assert ingest.main(["--input", str(photos), "--output", str(tmp_path / "c")]) == 0
    assert curate.main(["--input", str(tmp_path / "c")]) == 0
    (photos / "empty.png").write_bytes(b"")
    found = {}
    for name in ("photos", "c"):
        assert calibrate.main(["--input", str(tmp_path / name), "--output", str(tmp_path / f"{name}.json")]) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["photos"]["failed"] == {"empty.png": "empty"}
    assert {**found["photos"], "failed": {}} == found["c"]
    told = capsys.readouterr().out
    flag = told.split("--set 'rule.cutoff=")[1].split("'")[0]
    assert curate.main(["--show-config", "--set", f"rule.cutoff={flag}"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"]["cutoff"] == json.loads(flag)


def test_every_selection_recipe_can_be_calibrated_and_takes_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(shrunk(photographs(1)[0], 96))
    for recipe in sorted(curate.RECIPES.keys() - {"tiny"}):
        output = tmp_path / "made" / f"{recipe}.json"
        assert calibrate.main(["--recipe", recipe, "--input", str(tmp_path), "--output", str(output)]) == 0
        told = capsys.readouterr().out
        flags = [flag for line in told.splitlines() if line.startswith("  --set") for flag in shlex.split(line)]
        assert curate.main(["--recipe", recipe, "--show-config", *flags]) == 0
        rule = json.loads(capsys.readouterr().out)["rule"]
        found = json.loads(output.read_text())
        assert {name: rule[name] for name in found["rule"]} == found["rule"]
        assert set(found["rule"]) | set(found["not_measured"]) == {name for name, one in rule.items() if isinstance(one, dict)}
    assert "not measured, so without bounds: face_px (--set models.faces=…)" in calibrated_faces(tmp_path, capsys)


def calibrated_faces(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert calibrate.main(["--recipe", "faces_70k", "--input", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_place_without_photographs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--input", str(tmp_path)]) == 2
    assert "neither a dataset with scores nor a photograph" in capsys.readouterr().err
