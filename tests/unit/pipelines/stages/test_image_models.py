"""Networks that measure, on small ones of random weights: the same numbers as a plain call; and the boxes of a face detector."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import curate
from pipelines.recipes.curate import RECIPES
from pipelines.runtime.stage import version_of
from pipelines.stages.image_models import ImageModels, largest_face
from pipelines.stages.scores import SCHEMA, Scores
from tests.helpers import photographs, shrunk

SIDE_PX = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with two labels, a CLIP vision model and a head of two layers."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("networks")
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                             "image_size": SIDE_PX, "patch_size": 16}
    labels = {0: "normal", 1: "NSFW"}
    ViTForImageClassification(ViTConfig(**small, id2label=labels, label2id={v: k for k, v in labels.items()})).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(root / "vit")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**small, projection_dim=8)).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(root / "clip")
    layers = {"layers.0.weight": torch.randn(4, 8), "layers.0.bias": torch.randn(4),
              "layers.2.weight": torch.randn(1, 4), "layers.2.bias": torch.randn(1)}
    save_file(layers, root / "head.safetensors")
    torch.save({f"{name}": value for name, value in layers.items()}, root / "head.pth")
    return root


def models(folders: Path, **more: Any) -> ImageModels:
    return ImageModels(nsfw=str(folders / "vit"), aesthetic=str(folders / "clip"), aesthetic_head=str(folders / "head.safetensors"),
                       embedding=str(folders / "clip"), device="cpu", **more)


def scored(stage: Scores, data: list[bytes]) -> list[dict[str, Any]]:
    ids = [f"{i:032x}" for i in range(len(data))]
    stage.setup()
    result = stage.process({"images": pa.table({"image_id": ids, "source_id": ids, "bytes": pa.array(data, pa.binary())})}, {})
    assert result.table.schema == SCHEMA
    return result.table.to_pylist()


def test_columns_hold_what_a_plain_call_gives(folders: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPVisionModelWithProjection

    paths = photographs(3)
    rows = scored(Scores(max_pixels=10**7, models=models(folders), batch_rows=2), [shrunk(path, 96) for path in paths])
    head = load_file(folders / "head.safetensors")
    for row, path in zip(rows, paths):
        import io

        image = Image.open(io.BytesIO(shrunk(path, 96)))
        with torch.no_grad():
            x = AutoImageProcessor.from_pretrained(folders / "vit", backend="pil")(images=image, return_tensors="pt")
            wanted = AutoModelForImageClassification.from_pretrained(folders / "vit")(**x).logits.softmax(-1)[0, 1].item()
            x = AutoImageProcessor.from_pretrained(folders / "clip", backend="pil")(images=image, return_tensors="pt")
            e = CLIPVisionModelWithProjection.from_pretrained(folders / "clip")(**x).image_embeds[0]
            own = (e / e.norm()).numpy()
            e = head["layers.0.weight"] @ (e / e.norm()) + head["layers.0.bias"]
            beauty = (head["layers.2.weight"] @ e + head["layers.2.bias"]).item()
        assert row["nsfw"] == pytest.approx(wanted, rel=1e-4)  # five digits are kept; the batch is of another size
        assert row["aesthetic"] == pytest.approx(beauty, rel=1e-4)
        assert np.frombuffer(row["embedding"], np.float16) == pytest.approx(own, abs=1e-3)  # float16 of numbers below 1
        assert (row["watermark"], row["face_count"]) == (None, None)
    legacy = Scores(max_pixels=10**7, models=ImageModels(aesthetic=str(folders / "clip"), aesthetic_head=str(folders / "head.pth")))
    assert scored(legacy, [shrunk(paths[0], 96)])[0]["aesthetic"] == pytest.approx(rows[0]["aesthetic"], rel=1e-4)


def test_other_weights_are_another_version_and_another_place_is_not(folders: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders, copy)
    here, there = (Scores(max_pixels=1, models=models(place).identified()) for place in (folders, copy))
    assert version_of(here) == version_of(there) != version_of(Scores(max_pixels=1))
    (copy / "vit" / "config.json").write_text((copy / "vit" / "config.json").read_text() + " ")
    assert version_of(Scores(max_pixels=1, models=models(copy).identified())) != version_of(here)
    here.setup()
    assert "judges" not in vars(pickle.loads(pickle.dumps(here)))  # networks do not travel


@pytest.mark.parametrize(("given", "told"), [
    ({"nsfw_label": "rude"}, "knows the labels normal, nsfw"), ({"watermark": "nowhere"}, "no folder of weights at 'nowhere'"),
    ({"faces": "none.onnx"}, "no file of weights at 'none.onnx'")])
def test_what_cannot_be_used_is_told(folders: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        models(folders, **given).build()
    with pytest.raises(ValueError, match="set both or none"):
        ImageModels(aesthetic="clip")


def test_a_head_of_another_width_is_told(folders: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="expected them to lead from 8 to 1"):
        ImageModels(aesthetic=str(folders / "clip"), aesthetic_head=str(tmp_path / "wide.safetensors")).build()


def test_a_file_that_is_no_face_detector_is_told(tmp_path: Path) -> None:
    (tmp_path / "face.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(ValueError, match="no ONNX file of OpenCV's FaceDetectorYN"):
        ImageModels(faces=str(tmp_path / "face.onnx")).build()


def test_faces_are_counted_and_sized_in_pixels_of_the_picture() -> None:
    found = np.zeros((2, 15), np.float32)
    found[:, 2:4] = [[30, 40], [100, 80]]  # width and height of the boxes
    assert largest_face(found, 0.5) == {"face_count": 2, "face_px": 160.0}
    assert largest_face(None, 0.5) == {"face_count": 0, "face_px": 0.0}


def test_a_rule_cannot_judge_by_what_no_network_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert curate.main(["--recipe", "faces_70k", "--input", "/nowhere"]) == 2
    assert "set models.faces" in capsys.readouterr().err
    assert {one.measure for one in RECIPES["faces_70k"]().rule.limits()} > {"face_count", "face_px"}
