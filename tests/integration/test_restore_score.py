"""Restore and score on real photographs with the shipped prior, on a real local Ray: rows, files, and what is done again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from infra.dataset import Dataset
from pipelines import restore, score
from pipelines.stages.facts import FactsSettings
from supir_model.images import decode
from supir_model.presets import get_sampling
from tests.helpers import ROOT, images_dataset, photographs, shrunk

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]
FAST = ["--set", "encoder=none", "--set", "adaptor=none", "--set", "sampling.steps=2", "--set", "prior=" + str(ROOT / "priors" / "tiny")]


def other_encoder(folder: Path) -> str:
    """The prior's own encoder, a little changed, as training would write it."""
    import torch

    from supir_model.encoder import copy_encoder
    from supir_model.prior import load_components
    from supir_model.weights import encoder_files, write_folder

    components = load_components(ROOT / "priors" / "tiny")
    encoder = copy_encoder(components.vae)
    with torch.no_grad():
        encoder.conv_in.weight.mul_(1.01)
    write_folder(folder, encoder_files(encoder, "tiny"))
    return str(folder)


def test_score_measures_and_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_dataset(str(tmp_path / "corpus"), photographs(2), per_shard=1)
    command = [
        "--input",
        str(tmp_path / "corpus"),
        "--output",
        str(tmp_path / "scored"),
        "--set",
        "holdout_every=0",
        "--set",
        "size_px=128",
        *FAST,
    ]
    assert score.main(command) == 0
    assert "real_esrgan" in capsys.readouterr().out, "the table of means is printed"
    dataset = Dataset(str(tmp_path / "scored" / "real_esrgan"))
    first = dataset.snapshot("evaluations")
    rows = [row for ref in first.shards.values() for row in dataset.read(ref).to_pylist()]
    assert len(rows) == 2
    for row in rows:
        assert 5 < row["psnr_lq"] < 60, "dB; a degraded photograph is neither noise nor equal"
        assert -1 <= row["ssim_restored"] <= 1
        assert Image.open(io.BytesIO(row["restored"])).size == (128, 128)
        assert json.loads(row["protocol"])["degradation"] == "real_esrgan"
    assert score.main(command) == 0
    assert "0 pending" in capsys.readouterr().out, "what is done is not done again"
    assert score.main([*command, "--set", f"encoder={other_encoder(tmp_path / 'encoder')}"]) == 0
    assert "2 pending" in capsys.readouterr().out, "other weights make every score stale"
    assert dataset.snapshot("evaluations").version != first.version


def test_restore_takes_a_folder_and_leaves_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "my photos", tmp_path / "restored"
    folder.mkdir()
    for path in photographs(2):
        (folder / f"{path.stem} ü.png").write_bytes(shrunk(path, 96))
    (folder / "broken.jpg").write_bytes(b"no picture")
    command = ["--input", str(folder), "--output", str(output), *FAST]
    assert restore.main(command) == 0
    said = capsys.readouterr()
    assert "not restored: broken.jpg: not_an_image: first bytes" in said.err, "what cannot be read is named, and disturbs nothing"
    written = sorted((output / "pictures").glob("*.png"))
    assert [path.stem for path in written] == sorted(f"{path.stem} ü" for path in photographs(2))
    assert all(max(Image.open(path).size) == 192 for path in written), "the tiny recipe doubles what it is given"
    assert min(Image.open(output / "before_after.png").size) > 700
    before = {path: path.stat().st_mtime_ns for path in [*written, output / "before_after.png"]}
    assert restore.main(command) == 0
    said = capsys.readouterr()
    assert "restore: table 'restorations'" in said.out
    assert "(0 rows)" in said.out
    assert "pictures: 0 written" in said.out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is equal is left alone"

    # words of people: a file beside a picture redoes that picture, --prompt the other, and again nothing
    first, second = written
    (folder / f"{first.stem}.txt").write_text("a  person\nin orange")
    assert restore.main(command) == 0
    assert "1 pending (1 rows)" in capsys.readouterr().out
    assert restore.main([*command, "--prompt", "a valley"]) == 0
    said = capsys.readouterr()
    assert "1 pending (1 rows)" in said.out
    assert "pictures: 1 written" in said.out
    dataset = Dataset(str(output))
    snapshot = dataset.snapshot("restorations")
    rows = {row["caption"]: row for ref in snapshot.shards.values() for row in dataset.read(ref).to_pylist()}
    assert set(rows) == {"a person in orange", "a valley"}
    assert rows["a valley"]["prompt"].startswith("a valley" + get_sampling("tiny").prompts.positive[:20])
    assert (first.read_bytes(), second.read_bytes()) == (rows["a person in orange"]["bytes"], rows["a valley"]["bytes"])
    assert restore.main([*command, "--set", "prompt=a valley", "--set", "caption_files=false"]) == 0
    assert "1 pending (1 rows)" in capsys.readouterr().out, "the file is not asked, so the prompt is for both"


def test_restore_takes_one_picture_and_teaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes(shrunk(photographs(1)[0], 96))
    (tmp_path / "other.png").write_bytes(b"is not looked at")
    (tmp_path / "empty").mkdir()
    out = ["--output", str(tmp_path / "out")]
    assert restore.main(["--input", str(tmp_path / "one.png"), *out, *FAST]) == 0
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["one.png"]
    made = Dataset(str(tmp_path / "out"))
    [row] = [row for ref in made.snapshot("restorations").shards.values() for row in made.read(ref).to_pylist()]
    [said] = FactsSettings().build().describe([decode(row["stage1"]).rgb_HWC], [0])
    assert row["caption"] == said.text, "the captioner looks at the stage-1 picture"
    capsys.readouterr()
    prior = ROOT / "priors" / "tiny"
    for place, flags, message in (
        ("empty", FAST, "holds no file with the suffix of an image"),
        ("gone.png", FAST, "gone.png does not exist"),
        ("one.png", [*FAST, "--set", "prior=nowhere"], "no weights at 'nowhere'"),
        ("one.png", [*FAST, "--set", f"adaptor={prior}"], "it holds neither diffusion_pytorch_model.safetensors"),
        ("one.png", [*FAST, "--set", "upscale=4000"], "No tile size fits"),
    ):
        assert restore.main(["--input", str(tmp_path / place), "--output", str(tmp_path / "out2"), *flags]) == 2
        assert message in capsys.readouterr().err
