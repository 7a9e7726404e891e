"""Near-duplicates in bounded memory and time: crowds of hashes that look alike, chains, mirror images and crops."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipelines import duplicates
from pipelines.duplicates import Forms, near_losers
from pipelines.stages.hashes import distance, mirrored, to_words


def words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def flipped(words_N4: np.ndarray, bits: int, seed: int = 1) -> np.ndarray:
    """Each with some bits changed."""
    rng = np.random.default_rng(seed)
    unpacked = np.unpackbits(np.ascontiguousarray(words_N4).view(np.uint8).reshape(len(words_N4), -1), axis=1)
    for row in unpacked:
        row[rng.choice(256, bits, replace=False)] ^= 1
    return to_words(np.packbits(unpacked, axis=1).tobytes())


def brute(words_N4: np.ndarray, radius: int) -> dict[int, int]:
    kept: list[int] = []
    lost = {}
    for i, one in enumerate(words_N4):
        near = [j for j in kept if min(distance(one, words_N4[j]), distance(mirrored(one[None])[0], words_N4[j])) <= radius]
        if near:
            lost[i] = near[0]
        else:
            kept.append(i)
    return lost


@pytest.mark.parametrize("most_pairs", [10**6, 3])  # 3: too many to hold, so round after round
def test_losers_are_those_of_brute_force(most_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", most_pairs)
    base = words(40)
    chain = [flipped(base, 8, seed) for seed in range(4)]
    some = np.concatenate([base, *chain, mirrored(chain[0]), flipped(chain[1], 8, 9)])
    some = some[np.random.default_rng(5).permutation(len(some))]
    assert dict(near_losers(Forms(own_N4=some), 15)) == brute(some, 15)


def test_a_crop_of_a_picture_is_its_copy_whichever_is_better() -> None:
    whole, cropped = words(1), words(1, seed=7)
    for own, crops in ((np.concatenate([whole, cropped]), np.concatenate([cropped, words(1, 8)])),
                       (np.concatenate([cropped, whole]), np.concatenate([words(1, 8), cropped]))):
        assert dict(near_losers(Forms(own_N4=own, crops=(crops,)), 31)) == {1: 0}
        assert not dict(near_losers(Forms(own_N4=own), 31))


def test_crowds_cost_no_more_than_others() -> None:
    """1,000 hashes around one (a plain sky), 200,000 equal ones."""
    around = flipped(np.repeat(words(1), 1_000, axis=0), 6)
    equal = np.repeat(words(1, seed=4), 200_000, axis=0)
    begin = time.perf_counter()
    lost = dict(near_losers(Forms(own_N4=np.concatenate([around, equal])), 15))
    assert all(lost[row] == 1_000 for row in range(1_001, 201_000))
    assert len([row for row in lost if row < 1_000]) == 999
    assert time.perf_counter() - begin < 60  # every pair would take an hour


def test_a_radius_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="expected 0 to 255"):
        list(near_losers(Forms(own_N4=words(2)), 256))
