"""The cache of rows that come and go holds for each row what a cache of its own would hold, wherever the rows are moved."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pipelines.stages.llava_cache import BLOCK, RowsCache

LAYERS, HEADS, WIDTH, PLACES = 2, 3, 4, 5


def prompts(lengths: list[int], first: float) -> Any:
    """Keys and values of new rows, padded to the left, as a model leaves them."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(LAYERS):
        made = torch.randn(len(lengths), HEADS, max(lengths), WIDTH, generator=torch.Generator().manual_seed(int(first) + layer))
        cache.update(made, made + 1, layer)
    return cache


def seen_of(cache: RowsCache, row: int, layer: int) -> Any:
    """What the next token of a row sees of the cache, keys and values."""
    mask_L = cache.mask(None)[row, 0, 0, :-1]
    block, columns = cache.layers[layer], slice(cache.first, cache.end)
    return block.keys[row, :, columns][:, mask_L], block.values[row, :, columns][:, mask_L]


@pytest.mark.parametrize("seed", range(4))
def test_rows_keep_their_own_whatever_joins_and_leaves(seed: int) -> None:
    chance, cache, wanted = random.Random(seed), RowsCache(PLACES), []
    for turn in range(120):
        room = PLACES - len(wanted)
        if room and (not wanted or chance.random() < 0.1):
            lengths = [chance.randint(1, 40) for _ in range(chance.randint(1, room))]
            made = prompts(lengths, 1000 * seed + 10 * turn)
            cache.add(made, lengths)
            for row, length in enumerate(lengths):
                wanted.append([(layer.keys[row, :, -length:], layer.values[row, :, -length:]) for layer in made.layers])
        cache.make_room()
        for layer in range(LAYERS):
            token = torch.full((len(wanted), HEADS, 1, WIDTH), float(turn * LAYERS + layer))
            keys, _ = cache.layers[layer].update(token, token + 1)
            assert keys.shape[2] == cache.mask(None).shape[-1]
            for one in wanted:
                one[layer] = tuple(torch.cat([old, new[0]], 1) for old, new in zip(one[layer], (token, token + 1), strict=True))
        cache.advance()
        for row, one in enumerate(wanted):
            for layer in range(LAYERS):
                assert all(torch.equal(a, b) for a, b in zip(seen_of(cache, row, layer), one[layer], strict=True))
        if wanted and chance.random() < 0.1:
            place = chance.randrange(len(wanted))
            cache.remove(place)
            wanted[place] = wanted[-1]
            wanted.pop()
    assert cache.capacity <= 120 + 40 + BLOCK, "rows that are gone are not kept"


def test_memory_follows_the_longest_row_not_the_number_of_tokens() -> None:
    cache = RowsCache(2)
    for turn in range(10):
        cache.add(prompts([30], turn), [30])
        for _ in range(50):
            cache.make_room()
            for layer in cache.layers:
                layer.update(torch.zeros(1, HEADS, 1, WIDTH), torch.zeros(1, HEADS, 1, WIDTH))
            cache.advance()
        cache.remove(0)
    assert cache.capacity <= 30 + 50 + 2 * BLOCK


def test_a_window_hides_what_lies_before_it() -> None:
    cache = RowsCache(1)
    cache.add(prompts([10], 0), [10])
    assert cache.mask(4)[0, 0, 0].tolist() == [False] * 7 + [True] * 4, "the next token is one of the four"
