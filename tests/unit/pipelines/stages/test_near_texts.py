"""Captions in nearly the same words are found, others are not, in time that grows with their number."""

from __future__ import annotations

import random
import string

from pipelines.stages.near_texts import BANDS, ROWS, near_groups, runs_of, signature, similarity

LAKE = ("The image features a calm lake at sunset, with mountains in the background and a small wooden boat near the shore. The sky is "
        "painted in warm shades of orange and pink, and the water mirrors it.")
DOGS = "A dog and a cat lie side by side on a red sofa. The dog is brown, the cat is black and white, and both look at the camera."


def test_one_word_more_is_near_and_another_scene_is_not() -> None:
    texts = [DOGS, LAKE, LAKE.replace("small ", ""), LAKE.upper() + " 12", "A red bicycle leans against a wall of old bricks in the sun."]
    assert near_groups(texts) == [[1, 2, 3]]
    assert similarity(LAKE, DOGS) < 0.1


def test_equal_and_empty_texts() -> None:
    assert near_groups([]) == []
    assert near_groups([LAKE] * 10 + [DOGS]) == [list(range(10))]
    assert near_groups(["", "…", "Yes."]) == [[0, 1]]
    assert runs_of("Two words") == {"two words"}


def test_groups_are_the_same_whatever_stands_between() -> None:
    chance = random.Random(0)
    others = [" ".join("".join(chance.choices(string.ascii_lowercase, k=5)) for _ in range(40)) for _ in range(200)]
    mixed = [LAKE, *others[:100], LAKE.replace("pink", "red"), *others[100:], DOGS]
    assert near_groups(mixed) == [[0, 101]]


def test_signatures_estimate_what_two_texts_share() -> None:
    other = LAKE.replace("orange and pink", "yellow")
    estimate = (signature(LAKE) == signature(other)).mean()
    assert abs(estimate - similarity(LAKE, other)) < 3 * (0.25 / (BANDS * ROWS)) ** 0.5  # three standard errors of the mean of 64


def test_a_crowd_that_shares_all_but_the_end_costs_one_comparison_each() -> None:
    texts = [f"{LAKE} Number {chr(97 + i % 26)}{chr(97 + i // 26)}." for i in range(300)]
    assert len(near_groups(texts)[0]) == 300
