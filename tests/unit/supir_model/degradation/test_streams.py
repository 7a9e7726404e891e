"""Counter-based streams and the two table samplers."""

from __future__ import annotations

import numpy as np
import pytest

from supir_model.degradation import streams
from supir_model.degradation.streams import poisson_of_levels, standard_normal, stream

GOLDEN_WORDS = [3383302176800708020, 15897951306323552059]
GOLDEN_NORMAL = [-1.3735977411270142, 0.0001338697475148365, 1.3042469024658203, -0.9024814367294312]
GOLDEN_POISSON = [31.0, 26.0, 30.0, 38.0]


def test_a_stream_is_a_function_of_its_three_coordinates() -> None:
    def first(*key: object) -> float:
        return stream(*key).random()  # type: ignore[arg-type]

    assert first(1, "blur", 7) == first(1, "blur", 7)
    assert len({first(1, "blur", 7), first(2, "blur", 7), first(1, "noise", 7), first(1, "blur", 8), first(17, "blur", 0)}) == 5


def test_streams_never_change() -> None:
    """Golden: another value here would silently change every training run that is resumed."""
    words = stream(0, "golden", 0).bit_generator.random_raw(2).tolist()
    assert words == GOLDEN_WORDS
    assert np.array_equal(standard_normal(stream(0, "golden", 0), (4,)), np.array(GOLDEN_NORMAL, np.float32))
    levels = np.full(4, 128, np.uint8)
    assert poisson_of_levels(stream(0, "golden", 0), levels, 64).tolist() == GOLDEN_POISSON


def test_standard_normal_has_the_moments_of_a_normal() -> None:
    z = standard_normal(stream(3, "moments", 0), (1_000_000,)).astype(np.float64)
    error = 1.0 / np.sqrt(len(z))  # standard error of the mean
    assert abs(z.mean()) < 4 * error
    assert abs(z.var() - 1) < 4 * np.sqrt(2) * error
    assert abs((z**3).mean()) < 4 * np.sqrt(15) * error
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96) * error
    assert 4.0 < np.abs(z).max() < 4.4


@pytest.mark.parametrize("quanta", [1, 4, 64, 256])
def test_poisson_tables_are_the_poisson_distribution(quanta: int) -> None:
    """Each level's alias table, unrolled, against exp(-m) m^k / k!, to the 23 bits of a threshold."""
    table = streams._poisson_table(quanta).reshape(256, streams.SLOTS)
    keep, alias = table >> streams.ALIAS_BITS, table & streams.ALIAS_MASK
    for level in (0, 1, 17, 128, 255):
        mean = level / 255 * quanta
        found = np.zeros(streams.SLOTS)
        np.add.at(found, np.arange(streams.SLOTS), keep[level] / 2**23 / streams.SLOTS)
        np.add.at(found, alias[level], (1 - keep[level] / 2**23) / streams.SLOTS)
        expected = np.ones(streams.SLOTS)
        for k in range(1, streams.SLOTS):
            expected[k] = expected[k - 1] * mean / k
        assert np.abs(found - expected * np.exp(-mean)).max() < 2**-20, level


def test_poisson_draws_have_the_right_mean_and_variance() -> None:
    levels = np.repeat(np.array([0, 10, 200, 255], np.uint8), 200_000)
    counts = poisson_of_levels(stream(0, "poisson", 0), levels, 128).reshape(4, -1).astype(np.float64)
    mean = np.array([0, 10, 200, 255]) / 255 * 128
    error = np.sqrt(mean / counts.shape[1])
    assert (np.abs(counts.mean(axis=1) - mean) <= 4.5 * error).all()
    assert np.allclose(counts.var(axis=1), mean, rtol=0.02)
