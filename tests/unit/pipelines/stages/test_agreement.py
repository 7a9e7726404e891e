"""A small random CLIP judges captions; a picture that a processor refuses is a failed row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.runtime.stage import version_of
from pipelines.stages.agreement import Agreement, AgreementSettings
from pipelines.stages.caption_checks import CheckSettings
from pipelines.stages.captioner import Asked, Captioned, Identity
from pipelines.stages.captions import CaptionStage
from pipelines.stages.facts import FactsSettings
from tests.helpers import IMAGES, image_row, photographs, shrunk
from tests.tiny_models import tiny_clip, tiny_llava

TEXTS = ("A photograph of an old wooden house near the water under bright light.", "Green grass with some trees in front of the sky.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def images() -> pa.Table:
    return pa.Table.from_pylist([image_row(shrunk(path, 96), path.name) for path in photographs(3)], schema=IMAGES)


@dataclass(frozen=True)
class TwoTexts:
    """Says the first text, and the second when it is asked again; refuses pictures wider than `widest`."""

    widest: int = 10**6
    identity = Identity(engine="script", model="script", revision="1")

    def load(self) -> None:
        """Nothing to load."""

    def prove(self) -> None:
        """Nothing to prove."""

    def prepare(self, rgb_HWC: Any) -> Any:
        if rgb_HWC.shape[1] > self.widest:
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return rgb_HWC

    def describe_all(self, asked: Iterator[Asked]) -> Iterator[tuple[Asked, Captioned]]:
        for one in asked:
            yield one, Captioned(text=TEXTS[one.attempt], finish_reason="stop", prompt="", decoding="")


def judged(folder: Path | None, lowest: float, engine: TwoTexts | None = None) -> CaptionStage:
    settings = AgreementSettings(clip=str(folder) if folder else None, lowest=lowest).identified()
    stage = CaptionStage(captioner=FactsSettings(), checks=CheckSettings(), agreement=settings)
    stage.__dict__["engine"] = engine or TwoTexts()
    stage.setup()
    return stage


def test_the_cosine_is_in_the_row_and_decides(folder: Path, images: pa.Table) -> None:
    kept = judged(folder, -1.0).process({"images": images}, {}).table
    cosines = kept.column("agreement").to_pylist()
    assert len(set(cosines)) == 3
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    between = sorted(cosines)[1]
    result = judged(folder, between).process({"images": images}, {})
    verdicts = dict(zip(result.table.column("image_id").to_pylist(), result.table.column("verdict").to_pylist(), strict=True))
    ids = images.column("image_id").to_pylist()
    assert [verdicts[image_id] for image_id, cosine in zip(ids, cosines, strict=True) if cosine >= between] == ["ok", "ok"]
    refused = judged(folder, 1.0).process({"images": images}, {})
    assert [outcome.reason for outcome in refused.outcomes] == ["disagrees"] * 3
    assert refused.outcomes[0].detail.endswith(f"at least 1 expected: {TEXTS[1]}"), "it was asked again"


def test_pictures_of_a_slice_are_not_kept(folder: Path, images: pa.Table) -> None:
    from pipelines.stages.captions import _Slice

    slice_ = _Slice(judged(folder, -1.0), images, [0, 1, 2])
    assert len(list(slice_.run())) == 3
    assert slice_.looks == {}


def test_the_same_as_transformers_and_of_the_first_77_tokens(folder: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    agreement = AgreementSettings(clip=str(folder)).build()
    assert isinstance(agreement, Agreement)
    agreement.load()
    photo = np.array(Image.open(photographs(1)[0]).convert("RGB").resize((90, 60)))
    inputs = agreement.processor(images=[photo], text=[TEXTS[0]], return_tensors="pt")
    with torch.inference_mode():
        wanted = float(agreement.model(**inputs).logits_per_image[0, 0] / agreement.model.logit_scale.exp())
    assert agreement.measure(agreement.look(photo), TEXTS[0]) == pytest.approx(wanted, abs=6e-4)  # three digits are kept
    assert -1 <= agreement.measure(agreement.look(photo), TEXTS[0] * 50) <= 1


def test_without_a_clip_nothing_is_measured(images: pa.Table) -> None:
    assert judged(None, 0.9).process({"images": images}, {}).table.column("agreement").to_pylist() == [None] * 3


def test_a_picture_that_the_processor_refuses_fails_alone(images: pa.Table) -> None:
    widths = sorted(image["width"] for image in images.to_pylist())
    widest = widths[-1] - 1
    result = judged(None, 0.0, TwoTexts(widest)).process({"images": images}, {})
    assert {(one.status, one.reason) for one in result.outcomes} == {("failed", "processor_refused")}
    assert "ValueError: absolute aspect ratio" in result.outcomes[0].detail
    assert result.table.num_rows + len(result.outcomes) == 3


def test_other_weights_and_bounds_are_another_version(folder: Path) -> None:
    stages = [CaptionStage(captioner=FactsSettings(), checks=CheckSettings(), agreement=settings)
              for settings in (AgreementSettings(), AgreementSettings(weights="a"), AgreementSettings(weights="a", lowest=0.2))]
    assert len({version_of(stage) for stage in stages}) == 3


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    agreement = Agreement(AgreementSettings(clip=str(tiny_llava(tmp_path / "llava"))))
    with pytest.raises(ValueError, match="is a model of type 'llava', expected 'clip'"):
        agreement.load()
    with pytest.raises(ValueError, match="no folder of weights"):
        AgreementSettings(clip="/nowhere").identified()
    with pytest.raises(ValueError, match=r"agreement\.lowest is 2"):
        AgreementSettings(lowest=2)
