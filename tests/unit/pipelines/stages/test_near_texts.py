"""Captions in nearly the same words are found, others are not, in time and memory that grow with their number."""

from __future__ import annotations

import random
import string
from collections import defaultdict
from collections.abc import Iterable

import pytest

from pipelines.stages import near_texts
from pipelines.stages.near_texts import BANDS, ROWS, heads, runs_of, shared, signatures

LAKE = ("The image features a calm lake at sunset, with mountains in the background and a small wooden boat near the shore. The sky is "
        "painted in warm shades of orange and pink, and the water mirrors it.")
DOGS = "A dog and a cat lie side by side on a red sofa. The dog is brown, the cat is black and white, and both look at the camera."


def groups(texts: Iterable[str]) -> list[list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place, head in enumerate(heads(texts).tolist()):
        found[head].append(place)
    return [group for group in found.values() if len(group) > 1]


def similarity(one: str, other: str) -> float:
    return shared(runs_of([one])[0], runs_of([other])[0])


def test_one_word_more_is_near_and_another_scene_is_not() -> None:
    texts = [DOGS, LAKE, LAKE.replace("small ", ""), LAKE.upper() + " 12", "A red bicycle leans against a wall of old bricks in the sun."]
    assert groups(texts) == [[1, 2, 3]]
    assert similarity(LAKE, DOGS) < 0.1


def test_equal_and_empty_texts() -> None:
    assert groups([]) == []
    assert groups([LAKE] * 10 + [DOGS]) == [list(range(10))]
    assert groups(["", "…", "Yes.", "Yes, no", "yes: NO"]) == [[0, 1], [3, 4]]
    assert [len(runs_of([text])[0]) for text in ("", "Two words", "Three words only", "Four words are two")] == [1, 1, 1, 2]


def test_what_two_share_is_the_share_of_their_runs() -> None:
    def written(text: str) -> set[tuple[str, ...]]:
        words = near_texts.WORD.findall(text.lower())
        return {tuple(words[i:i + 3]) for i in range(len(words) - 2)}

    other = LAKE.replace("orange and pink", "yellow")
    assert similarity(LAKE, other) == len(written(LAKE) & written(other)) / len(written(LAKE) | written(other))


def strangers(count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join("".join(chance.choices(string.ascii_lowercase, k=5)) for _ in range(40)) for _ in range(count)]


@pytest.mark.parametrize("at_a_time", [1, 7, 4096])
def test_groups_are_the_same_whatever_stands_between_and_in_any_batches(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(near_texts, "AT_A_TIME", at_a_time)
    others = strangers(200)
    mixed = [LAKE, *others[:100], LAKE.replace("pink", "red"), *others[100:], DOGS]
    assert groups(iter(mixed)) == [[0, 101]]


def test_a_text_that_leads_a_group_and_joins_another_takes_it_along() -> None:
    words = strangers(10)
    texts = [" ".join(words[group].split()[low:low + 20]) for low in range(12) for group in range(10)]  # each near its neighbours
    found = heads(texts)
    assert (found[found] == found).all()
    assert (found <= range(len(texts))).all()
    assert max(map(len, groups(texts))) > 2
    for group in groups(texts):
        assert all(any(similarity(texts[one], texts[other]) >= near_texts.NEAR for other in group if other != one) for one in group)
        assert len({one % 10 for one in group}) == 1


def test_signatures_estimate_what_two_texts_share() -> None:
    other = LAKE.replace("orange and pink", "yellow")
    one, two = signatures(*runs_of([LAKE, other])).T
    assert abs((one == two).mean() - similarity(LAKE, other)) < 3 * (0.25 / (BANDS * ROWS)) ** 0.5  # three standard errors of a mean of 64


def test_a_crowd_that_shares_all_but_the_end_costs_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[float] = []

    def counted(*both: object) -> float:
        compared.append(shared(*both))  # type: ignore[arg-type]
        return compared[-1]

    monkeypatch.setattr(near_texts, "shared", counted)
    texts = [f"{LAKE} Number {chr(97 + i % 26)}{chr(97 + i // 26)}." for i in range(300)]
    assert len(groups(texts)[0]) == 300
    assert len(compared) < 310
