"""A state is gathered in buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from training.engines import in_buckets


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), max_size=30), st.integers(1, 100))
def test_buckets_hold_every_name_once_in_order_and_are_as_full_as_they_may_be(sizes: dict[str, int], room: int) -> None:
    buckets = in_buckets(sizes, room)
    assert [name for names in buckets for name in names] == list(sizes)
    filled = [sum(sizes[name] for name in names) for names in buckets]
    assert all(total <= room or len(names) == 1 for names, total in zip(buckets, filled, strict=True))
    assert all(total + sizes[after[0]] > room for total, after in zip(filled, buckets[1:], strict=False))
