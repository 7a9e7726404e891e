"""Every check finds its fault, and honest captions pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stages.caption_checks import CheckSettings, find_fault, longest_loop, repeated_share

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


@pytest.mark.parametrize(("text", "finish", "reason"), [
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
])
def test_faults(text: str, finish: str, reason: str) -> None:
    fault = find_fault(text, finish, CHECKS)
    assert fault is not None
    assert fault.reason == reason
    assert fault.detail


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
