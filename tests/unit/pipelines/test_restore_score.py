"""The parts of restore and score that need no network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipelines import restored_files, score_summary
from pipelines.recipes import restore, score
from pipelines.restore import make_stage
from pipelines.runtime.stage import version_of
from pipelines.stages.restoration_scores import measure
from pipelines.stages.restorer import Weights
from tests.helpers import ROOT, photographs


def test_table1_recipes_are_those_of_the_degradations() -> None:
    from supir_model.degradation import TABLE1

    assert tuple(TABLE1) == score.TABLE1
    assert score.RECIPES["table1_x8"]().degradations == ("x8",)
    assert score.RECIPES["table1"]().degradations == score.TABLE1
    guided, free = score.RECIPES["table1"](), score.RECIPES["table1_no_guidance"]()
    assert (guided.sampling.restore_cfg, free.sampling.restore_cfg) == (4.0, -1.0)
    assert replace(free, output=guided.output, sampling=guided.sampling) == guided, "nothing else differs"


def test_measures_against_closed_forms() -> None:
    """A uniform difference d of 8-bit levels has PSNR 20 log10(255 / d), and equal pictures have SSIM 1."""
    from supir_model.images import decode

    original = np.clip(decode(photographs(1)[0].read_bytes()).rgb_HWC[:64, :64], 0, 245)
    shifted = original + np.uint8(10)
    assert measure(shifted, original)["psnr"] == pytest.approx(20 * math.log10(25.5), abs=1e-3)  # fp32 in torchmetrics
    assert measure(original, original)["ssim"] == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < measure(shifted, original)["ssim"] < 1


def test_means_leave_out_what_is_infinite() -> None:
    assert score_summary.mean([20.0, math.inf, 30.0]) == 25.0
    assert score_summary.mean([math.inf]) == math.inf


def test_places_of_weights_do_not_matter_their_content_does(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = restore.tiny().__class__(**{**vars(restore.tiny()), "encoder": None, "adaptor": None})
    here = version_of(make_stage(config))
    copy = tmp_path / "copy"
    for path in (ROOT / "priors" / "tiny").rglob("*"):
        if path.is_file():
            (copy / path.relative_to(ROOT / "priors" / "tiny")).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(ROOT / "priors" / "tiny")).write_bytes(path.read_bytes())
    moved = config.__class__(**{**vars(config), "prior": str(copy)})
    assert version_of(make_stage(moved)) == here, "the same weights elsewhere are the same weights"
    (copy / "prior.json").write_text((copy / "prior.json").read_text() + "\n")
    assert version_of(make_stage(moved)) != here


def test_missing_weights_are_told_before_any_work() -> None:
    with pytest.raises(ValueError, match="no weights at 'nowhere'"):
        Weights(prior="nowhere").identified()


def test_names_of_files_stay_in_the_folder_and_apart() -> None:
    names = restored_files.file_names({"1": ["a/b.jpg"], "2": ["c.jpg"], "3": ["c.webp"], "4": ["../../etc/x.jpg", "/y.jpg"]})
    assert names == {"1": ["a/b.png"], "2": ["c.jpg.png"], "3": ["c.webp.png"], "4": ["etc/x.png", "y.png"]}
