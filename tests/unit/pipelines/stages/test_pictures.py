"""Pictures are decoded by threads ahead of whoever looks at them, and no further."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.ledger import Outcome
from pipelines.stages.pictures import decoded_batches, decoded_rows
from tests.helpers import IMAGES, image_row, photographs, shrunk, wait_until


@pytest.fixture(scope="module")
def images() -> pa.Table:
    return pa.Table.from_pylist([image_row(shrunk(path, 32), path.name) for path in photographs(8)], schema=IMAGES)


def test_the_next_ones_are_made_while_the_first_is_looked_at(images: pa.Table) -> None:
    made: list[tuple[int, str]] = []

    def prepare(picture: Any, row: int) -> Any:
        made.append((row, threading.current_thread().name))
        return picture

    pictures = decoded_rows(images, range(8), 3, "source_id", prepare)
    assert next(pictures)[0] == 0
    wait_until(lambda: len(made) == 4, "three pictures ahead", timeout_s=10)
    assert {row for row, _ in made} == {0, 1, 2, 3}
    assert threading.current_thread().name not in {name for _, name in made}
    assert [row for row, _ in pictures] == list(range(1, 8))


def test_one_that_does_not_decode_fails_in_its_place(images: pa.Table) -> None:
    rows = images.to_pylist()
    rows[2]["bytes"] = rows[2]["bytes"][:100]
    broken = pa.Table.from_pylist(rows, schema=IMAGES)
    found = dict(decoded_rows(broken, range(8), 2, "source_id"))
    assert isinstance(found[2], Outcome)
    assert (found[2].status, found[2].row_id) == ("failed", rows[2]["source_id"])
    assert all(isinstance(picture, np.ndarray) for row, picture in found.items() if row != 2)
    batches = list(decoded_batches(broken, range(8), 3, "source_id"))
    assert [(batch.rows, len(batch.failed)) for batch in batches] == [([0, 1], 1), ([3, 4, 5], 0), ([6, 7], 0)]
