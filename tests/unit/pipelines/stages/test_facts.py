"""The words of `facts` move as the picture does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.stages.facts import BLUR, BRIGHTNESS, COLOURS, describe, measure
from tests.helpers import ROOT, photographs


def load(name: str) -> np.ndarray:
    """An example photograph, longer side 640 px."""
    image = ImageOps.exif_transpose(Image.open(ROOT / "examples" / "photos" / name)).convert("RGB")
    image.thumbnail((640, 640))
    return np.array(image)


def place(text: str, scale: tuple[tuple[float, str], ...]) -> int:
    """Where the text's word stands on a scale; longer words first, as `very dark` contains `dark`."""
    words = sorted(enumerate(word for _, word in scale), key=lambda item: -len(item[1]))
    return next(i for i, word in words if word in text)


@pytest.fixture(params=["forest_stream.jpg", "coffee_cup.png", "sunrise_over_hills.jpg"])
def photo(request: pytest.FixtureRequest) -> np.ndarray:
    return load(request.param)


def test_one_or_two_plain_sentences_that_fit_clip(photo: np.ndarray) -> None:
    text = describe(photo)
    assert 1 <= text.count(". ") + 1 <= 2
    assert text.endswith(".")
    assert "\n" not in text
    assert 10 < len(text.split()) < 50
    assert describe(photo.copy()) == text


def test_darker_and_brighter(photo: np.ndarray) -> None:
    darker, brighter = (photo * 0.35).astype(np.uint8), 255 - ((255 - photo) * 0.35).astype(np.uint8)
    places = [place(describe(p), BRIGHTNESS) for p in (darker, photo, brighter)]
    assert places[0] < places[1] < places[2]


def test_contrast(photo: np.ndarray) -> None:
    flat = (photo.astype(np.float32) * 0.25 + 96).astype(np.uint8)
    stretched = cv2.equalizeHist(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))[..., None].repeat(3, axis=2)
    low, own, high = (measure(p).contrast for p in (flat, photo, stretched))
    assert low < own < high
    assert "low contrast" in describe(flat)
    assert "high contrast" in describe(stretched)


def test_blur_is_heard(photo: np.ndarray) -> None:
    scales = [place(describe(cv2.GaussianBlur(photo, (0, 0), sigma) if sigma else photo), BLUR) for sigma in (0, 1.5, 6)]
    assert scales == sorted(scales)
    assert scales[-1] == len(BLUR) - 1
    assert scales[-1] > scales[0]


def test_orientation(photo: np.ndarray) -> None:
    wide = photo[: photo.shape[1] // 2] if photo.shape[0] >= photo.shape[1] else photo
    assert "landscape format" in describe(wide)
    assert "portrait format" in describe(np.rot90(wide).copy())
    side = min(photo.shape[:2])
    assert "square format" in describe(photo[:side, :side])


@pytest.mark.parametrize(("tint", "word"), [((1.0, 0.15, 0.15), "red"), ((0.15, 0.3, 1.0), "blue"), ((0.2, 0.9, 0.2), "green")])
def test_colours_follow_the_hue(photo: np.ndarray, tint: tuple[float, float, float], word: str) -> None:
    light = 70 + 0.7 * photo.mean(axis=2, keepdims=True)
    assert f"mostly {word}" in describe((light * tint).astype(np.uint8))


PRIMARIES = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


@pytest.mark.parametrize(("word", "colour"), PRIMARIES.items())
def test_primaries(word: str, colour: tuple[int, int, int]) -> None:
    assert f"mostly {word}." in describe(np.full((30, 30, 3), colour, np.uint8))


@pytest.mark.parametrize("name", sorted(COLOURS))
def test_every_colour_is_called_by_its_name(name: str) -> None:
    for colour in COLOURS[name]:
        patch = np.full((40, 60, 3), colour, np.uint8)
        assert f"mostly {name}" in describe(patch)


def test_without_colour() -> None:
    grey = np.array(ImageOps.exif_transpose(Image.open(ROOT / "examples/photos/cat.png")).convert("L").convert("RGB"))
    assert describe(grey).startswith("A black-and-white photograph")
    assert describe(load("cat.png")).startswith("A photograph")


def test_the_share_of_colours_is_the_whole_picture(photo: np.ndarray) -> None:
    assert sum(share for _, share in measure(photo).shares) == pytest.approx(1.0)


def test_words_tell_photographs_apart() -> None:
    texts = {describe(load(path.name)) for path in photographs() if (ROOT / "examples" / "photos" / path.name).exists()}
    assert len(texts) >= 8  # of about seventeen: a sentence that fits them all would say nothing


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (3000, 2, 3)])
def test_degenerate_sizes(shape: tuple[int, int, int]) -> None:
    assert describe(np.full(shape, 200, np.uint8)).endswith(".")


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 height x width x 3"):
        describe(picture)
