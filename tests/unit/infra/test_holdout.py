"""The held-out rule is a function of the id alone, and holds out about the share that was asked for."""

import hashlib

import pytest

from infra.holdout import is_held_out

IDS = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(4000)]


def test_share_is_about_one_in_every() -> None:
    for every in (2, 4, 10):
        share = sum(is_held_out(image_id, every) for image_id in IDS) / len(IDS)
        assert abs(share - 1 / every) < 0.03, "4000 draws of 1/2 have a standard deviation of 0.008"


def test_same_answer_every_time_and_none_at_zero() -> None:
    assert [is_held_out(i, 4) for i in IDS[:50]] == [is_held_out(i, 4) for i in IDS[:50]]
    assert not any(is_held_out(image_id, 0) for image_id in IDS[:50])


def test_negative_share_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0"):
        is_held_out(IDS[0], -1)
