"""Near-duplicates in bounded memory and time: crowds of hashes that look alike, chains, mirror images, turned ones and crops."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import duplicates
from pipelines.covering import are_marked, marked
from pipelines.duplicates import near_losers
from pipelines.stages.hashes import mirrored, turned
from tests.unit.pipelines.hash_rows import brute, flipped, forms, words


def losers(words_NF4: np.ndarray, radius: int) -> dict[int, int]:
    return dict(near_losers(words_NF4, np.arange(len(words_NF4)), radius, threads=2))


@pytest.mark.parametrize("crowd", [64, 2])  # 2: nearly every key is crowded, so round after round
def test_losers_are_those_of_brute_force(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "CROWD", crowd)
    base = words(40)
    chain = [flipped(base, bits, bits) for bits in (5, 8, 12, 16, 20, 31)]
    own = np.concatenate([base, *chain, mirrored(chain[0]), flipped(chain[1], 8, 9), turned(chain[2])])
    own = own[np.random.default_rng(5).permutation(len(own))]
    crops = np.concatenate([flipped(own[1:], 20, 3), own[:1]])  # of each, near to the next
    some = forms(own, crops, words(len(own), 8))
    for radius in (0, 4, 15, 31):
        assert losers(some, radius) == brute(some, radius)


def test_beyond_the_rows_that_are_searched_whole_the_certain_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "EXACT_ROWS", 0)
    base = words(100)
    for bits, least in ((duplicates.CERTAIN, 100), (31, 90)):
        some = forms(np.concatenate([base, flipped(base, bits)]))
        found = losers(some, 31)
        assert set(found.items()) <= set(brute(some, 31).items())
        assert len(found) >= least


def test_a_crop_of_a_picture_is_its_copy_whichever_is_better() -> None:
    whole, cropped = words(1), words(1, seed=7)
    for own, crops in ((np.concatenate([whole, cropped]), np.concatenate([cropped, words(1, 8)])),
                       (np.concatenate([cropped, whole]), np.concatenate([words(1, 8), cropped]))):
        assert losers(forms(own, crops), 31) == {1: 0}
        assert not losers(forms(own), 31)
    assert not losers(forms(words(2), np.repeat(words(1, 9), 2, axis=0)), 31)  # two crops that are alike are no copies


def test_flipped_and_turned_pictures_are_copies() -> None:
    own = words(1)
    for other in (mirrored(own), turned(own), mirrored(turned(own)), turned(mirrored(own)), mirrored(turned(mirrored(own)))):
        assert losers(forms(np.concatenate([own, flipped(other, 25)])), 31) == {1: 0}


def test_crowds_cost_no_more_than_others() -> None:
    """1,000 hashes around one (a plain sky), 500 that share three words and differ in the fourth, 100,000 equal ones."""
    around = flipped(np.repeat(words(1), 1_000, axis=0), 6)
    shared = np.concatenate([np.repeat(words(1, 3)[:, :3], 500, axis=0), words(500, 5)[:, 3:]], axis=1)
    equal = np.repeat(words(1, seed=4), 100_000, axis=0)
    few = forms(np.concatenate([around[:100], shared[:100], equal[:9]]))
    assert losers(few, 31) == brute(few, 31)
    lost = losers(forms(np.concatenate([around, shared, equal])), 31)
    assert all(lost[row] == 1_500 for row in range(1_501, 101_500))
    assert len([row for row in lost if row < 1_000]) == 999


@pytest.mark.parametrize("count", [1, 7, 5_000])
def test_marks_miss_no_key_and_take_few_others_for_one(count: int) -> None:
    keys, others = np.random.default_rng(count).integers(0, 2**64, (2, count), dtype=np.uint64)
    marks = marked(np.array_split(keys, 3), count)
    assert np.array_equal(are_marked(keys, marks), np.arange(count))
    assert len(are_marked(others, marks)) <= count / 16


def test_a_radius_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="expected 0 to 255"):
        losers(forms(words(2)), 256)
