"""Every check finds its fault, and honest captions pass."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stages.caption_checks import MIN_ENGLISH_SHARE, CheckSettings, english_share, find_fault, longest_loop, repeated_share

CHECKS = CheckSettings()
GOOD = (
    "The image features a calm lake at sunset, with mountains in the background and a small wooden boat near the shore. The sky is "
    "painted in warm shades of orange and pink, and the water mirrors it. The style is that of a realistic landscape photograph.",
    "A dog and a cat lie side by side on a red sofa. The dog is brown, the cat is black and white, and both look at the camera.",
    "A photograph in landscape format, dark with high contrast, mostly black with some brown. It shows clear texture and is sharp.",
    "The sign in the window reads 'Sorry, we are closed', and a bicycle leans against the brick wall below it.",
    "Row after row after row of seats fill the empty stadium under a very, very blue sky.",
)


@pytest.mark.parametrize("text", GOOD)
def test_honest_captions_pass(text: str) -> None:
    assert find_fault(text, "stop", CHECKS) is None


FAULTS = [
    ("", "stop", "empty"),
    ("  …!  ", "stop", "empty"),
    (GOOD[0].rsplit(" ", 12)[0], "length", "cut_off"),
    ("The image shows " + "a tree and " * 30, "length", "repetition"),
    ("trees trees trees trees trees trees", "stop", "repetition"),
    ("The scene is calm. There are several people in the background. " * 4, "stop", "repetition"),
    ("I'm sorry, but I can't describe this picture.", "stop", "refusal"),
    ("As an AI language model, I do not have eyes to look at the scene.", "stop", "refusal"),
    ("There was no image attached to your message, so nothing can be said.", "stop", "refusal"),
    ("Please provide the image that you would like me to describe in detail.", "stop", "refusal"),
    ("USER: Describe this image and its style in a very detailed manner.", "stop", "refusal"),
    ("A nice dog.", "stop", "too_short"),
    ("A lake under a \x1b[31mred\x1b[0m sky, with mountains behind it.", "stop", "control_characters"),
    ("A lake under a red sky, with \ufffd\ufffd mountains behind it.", "stop", "control_characters"),
    ("<p>A lake under a red sky, with mountains behind it.</p>", "stop", "markup"),
    ("A lake &amp; mountains under a red sky, and the sun behind them.", "stop", "markup"),
    ("A picture <image> of a lake with mountains behind it.", "stop", "markup"),
    ("A lake under a red sky.<|im_end|> There are mountains behind it.", "stop", "markup"),
    ("The photograph IMG_2041.jpg shows a lake with mountains behind it.", "stop", "unknowable"),
    ("A lake with mountains, as found at https://example.org in the summer.", "stop", "unknowable"),
    ("湖の上に赤い空が広がり、山々が遠くに見える。 静かな夕暮れ の 写真 です とても きれい", "stop", "wrong_language"),
    ("Ein See unter rotem Himmel, dahinter Berge. Der Stil ist der einer ruhigen Fotografie in warmen Farben.", "stop", "wrong_language"),
    ("Un lac sous un ciel rouge, avec des montagnes au fond. Le style est celui d'une photographie de paysage.", "stop", "wrong_language"),
    ("Un lago bajo un cielo rojo, con montañas al fondo. El estilo es el de una fotografía de paisaje.", "stop", "wrong_language"),
    ("Um lago sob um céu vermelho, com montanhas ao fundo. O estilo é o de uma fotografia de paisagem calma.", "stop", "wrong_language"),
    ("Een meer onder een rode lucht, met bergen op de achtergrond. De stijl is die van een rustige foto.", "stop", "wrong_language"),
    ("Un lago sotto un cielo rosso, con le montagne sullo sfondo. Lo stile è quello di una fotografia.", "stop", "wrong_language"),
    ("lake " * 25_000, "stop", "too_long"),
    (" ".join(f"word{i}" for i in range(700)), "stop", "too_long"),
]


@pytest.mark.parametrize(("text", "finish", "reason"), FAULTS)
def test_faults(text: str, finish: str, reason: str) -> None:
    fault = find_fault(text, finish, CHECKS)
    assert fault is not None
    assert fault.reason == reason
    assert fault.detail


def test_the_measured_gap_between_english_and_its_neighbours() -> None:
    """MIN_ENGLISH_SHARE lies between what is measured here."""
    import re

    texts = {text: reason for text, _, reason in FAULTS if reason == "wrong_language" and text.isascii() | ("é" in text or "ñ" in text)}
    shares = [english_share(re.findall(r"[\w'-]+", text.lower())) for text in texts]
    english = [english_share(re.findall(r"[\w'-]+", text.lower())) for text in GOOD]
    assert max(shares) < MIN_ENGLISH_SHARE < min(english), (max(shares), min(english))


def test_any_language_may_be_allowed() -> None:
    german = "Ein See unter rotem Himmel, dahinter hohe Berge und ein Boot am Ufer."
    assert find_fault(german, "stop", CheckSettings(plain_english=False)) is None


def test_half_a_character_is_a_fault_in_any_language() -> None:
    for checks in (CHECKS, CheckSettings(plain_english=False)):
        fault = find_fault("A lake under a red sky \ud83d with mountains behind it.", "stop", checks)
        assert fault is not None
        assert fault.reason == "control_characters"
        assert fault.detail.encode()


def test_a_hundred_kilobytes_take_no_time() -> None:
    start = time.monotonic()
    fault = find_fault("a lake and a mountain " * 5000, "stop", CHECKS)
    assert fault is not None
    assert time.monotonic() - start < 0.1  # the loop search over as many words would take seconds


def test_a_cut_caption_may_be_allowed() -> None:
    assert find_fault(GOOD[0], "length", CheckSettings(allow_cut=True)) is None


def test_details_stay_short() -> None:
    fault = find_fault("word " * 5_000, "stop", CHECKS)
    assert fault is not None
    assert len(fault.detail) < 300


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8, unique=True), st.integers(1, 6))
def test_a_phrase_said_n_times_is_counted_n_times(phrase: list[str], times: int) -> None:
    assert longest_loop(phrase * times) == times


@given(st.lists(st.text(min_size=1), max_size=40, unique=True))
def test_words_that_never_come_back_are_no_loop(words: list[str]) -> None:
    assert longest_loop(words) == 1
    assert repeated_share(words) == 0.0


def test_settings_teach() -> None:
    with pytest.raises(ValueError, match="reasks is -1"):
        CheckSettings(reasks=-1)
