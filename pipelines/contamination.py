"""Test sets are kept out of the corpus: their pictures are hashed in many forms, and what matches one of them is not selected.

A test set is a folder, an S3 prefix, a tar or a dataset. Each of its pictures is hashed whole and as crops of many shapes at many places
(`boxes`), all of them turned over the diagonal too; a picture of the corpus matches when its hash, or that of a part of it (hashes.parts:
the test picture may be the crop), flipped or not, lies near to one of these, or when its bytes are equal. docs/results/duplicates.md
holds the recall by transform. Photographs that infra/holdout.py holds out of training are another matter: they stay in the corpus, and
since duplicates are removed no copy of them is trained on.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.dataset import Dataset
from infra.storage import StorageError
from infra.stores import open_store
from pipelines.covering import CHUNK, Part, are_marked, chosen_parts, marked
from pipelines.sources import Source, to_key
from pipelines.stages.hashes import WHOLE, WORDS, Box, cropped_hashes, flipped_distance, spans, turned

STEP = 0.03  # measured: from share to share and from place to place; of any rectangles 0.04 finds 92 of 100, 0.03 all
LEAST_SHARE = 0.7  # choice: smaller crops of other content would be taken for the picture
CERTAIN = 31  # choice: the tables for 40 bits are four times as many; of those at 40 these find 90 to 99 of 100 (measured)
CERTAIN_OF_PARTS = 23  # choice: a quarter of the tables; what is cut out lies near to several parts and forms at once
MOST_PAIRS = 1 << 18  # choice: compared at a time
THREADS = 4  # choice: pictures read and hashed at a time
Read = tuple[str, bytes | str]  # name, and the bytes or why there are none


@dataclass(frozen=True, kw_only=True)
class TestPictures:
    """The pictures that must not be trained on. Form m of them has the hash `words_M4[m]` and is of `names[owner_M[m]]`."""

    __test__ = False  # pytest: not a test
    names: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    words_M4: NDArray[Any] = field(default_factory=lambda: np.zeros((0, WORDS), np.uint64))
    owner_M: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    unreadable: dict[str, str] = field(default_factory=dict)  # name -> why
    flat: list[str] = field(default_factory=list)  # names of those of which no form is clear: equal bytes alone are found


def read_tests(addresses: Sequence[str], *, max_pixels: int, threads: int = THREADS) -> TestPictures:
    """Hash every picture of the test sets. Raises ValueError for a set that holds none that can be read."""
    names: list[str] = []
    image_ids: list[str] = []
    forms: list[NDArray[Any]] = []
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for address in addresses:
            before = len(names)
            for name, image_id, found in pool.map(partial(_hash, max_pixels), _pictures(address)):
                if isinstance(found, str):
                    unreadable[name] = found
                else:
                    names.append(name)
                    image_ids.append(image_id)
                    forms.append(found)
            if len(names) == before:
                raise ValueError(f"exclude: {address} holds no picture that can be read ({len(unreadable)} could not): give a folder, "
                                 "an S3 prefix, a tar or a dataset of pictures")
    owner = np.repeat(np.arange(len(forms)), [len(one) for one in forms])
    flat = [name for name, one in zip(names, forms) if not len(one)]
    return TestPictures(names=names, image_ids=image_ids, owner_M=owner, unreadable=unreadable, flat=flat,
                        words_M4=np.concatenate(forms) if forms else np.zeros((0, WORDS), np.uint64))


def boxes(height: int, width: int) -> Iterator[Box]:
    """Every rectangle of 0.7 to 1 of each side, wherever it may lie, in steps; and the squares of the shorter side."""
    shares = (round(1 - STEP * step, 2) for step in range(1, round((1 - LEAST_SHARE) / STEP) + 1))
    cuts = [WHOLE, *(span for share in shares for span in spans(share, _places(share)))]
    yield from product(cuts, cuts)
    square = min(height, width) / max(height, width)
    if square < 1 - STEP / 2:
        yield from ((one, WHOLE) if height > width else (WHOLE, one) for one in spans(square, _places(square)))


def _places(share: float) -> NDArray[Any]:
    return np.linspace(0, 1, max(math.ceil(round((1 - share) / STEP, 6)), 1) + 1)


def contaminated(image_ids: NDArray[Any], words_NK4: NDArray[Any], is_clear_N: NDArray[Any], tests: TestPictures, radius: int,
                 threads: int = 0) -> dict[int, str]:
    """Row -> name of the (first) test picture that it shows, or of which it shows more. `words_NK4`: of the picture, and of parts of it.
    `image_ids` as bytes; rows that are not clear match by their bytes alone. `threads` 0: as many as there are cores."""
    nobody, count = len(tests.names), len(words_NK4)
    owner = np.full(count, nobody)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for words_NP4, certain in ((words_NK4[:, :1], CERTAIN), (words_NK4[:, 1:], CERTAIN_OF_PARTS)):
            for near, of in _near(words_NP4, tests, radius, certain, pool):
                np.minimum.at(owner, near, of)
    owner[~is_clear_N] = nobody
    by_id: dict[bytes, int] = {}
    for n, image_id in enumerate(tests.image_ids):
        by_id.setdefault(bytes.fromhex(image_id).rstrip(b"\0"), n)
    for row in np.flatnonzero(np.isin(image_ids, np.array(list(by_id), dtype="S32"))).tolist():
        owner[row] = by_id[bytes(image_ids[row])]
    return {row: tests.names[owner[row]] for row in np.flatnonzero(owner < nobody).tolist()}


def _near(words_NP4: NDArray[Any], tests: TestPictures, radius: int, certain: int, pool: ThreadPoolExecutor,
          ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """(rows, owners) that are near, table after table. Of each row P hashes are looked up."""
    count, each, _ = words_NP4.shape
    chunk = max(CHUNK // max(each, 1), 1)
    for part in chosen_parts(min(radius, certain), len(tests.words_M4), count * each) if count * each else ():
        own = np.concatenate([part.values(words_NP4[low:low + chunk]) for low in range(0, count, chunk)])
        values = own.ravel(), part.values(tests.words_M4)
        for near, of in pool.map(partial(_matches, part, values, (words_NP4, tests), radius), part.masks):
            yield near // each, of


def _matches(part: Part, values: tuple[NDArray[Any], NDArray[Any]], words: tuple[NDArray[Any], TestPictures], radius: int, mask: np.uint64,
             ) -> tuple[NDArray[Any], NDArray[Any]]:
    """(entries, owners) that are near and have one key in this table."""
    words_NP4, tests = words
    each = words_NP4.shape[1]
    theirs = part.keys(values[1], mask)
    order = np.argsort(theirs, kind="stable")
    theirs, marks = theirs[order], marked([theirs], len(theirs))
    entries: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    owners: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    for low in range(0, len(values[0]), CHUNK):
        keys = part.keys(values[0][low:low + CHUNK], mask)
        some = are_marked(keys, marks)
        first, end = np.searchsorted(theirs, keys[some], "left"), np.searchsorted(theirs, keys[some], "right")
        place = np.repeat(np.arange(len(some)), end - first)
        form = order[np.arange(len(place)) - np.repeat(np.cumsum(end - first) - end, end - first)]
        for begin in range(0, len(place), MOST_PAIRS):
            entry, of = low + some[place[begin:begin + MOST_PAIRS]], form[begin:begin + MOST_PAIRS]
            near = flipped_distance(words_NP4[entry // each, entry % each], tests.words_M4[of]) <= radius
            entries.append(entry[near])
            owners.append(tests.owner_M[of[near]])
    return np.concatenate(entries), np.concatenate(owners)


def told(tests: TestPictures, removed: Iterable[str], most: int = 20) -> str:
    """What the job prints."""
    counts: dict[str, int] = {}
    for name in removed:
        counts[name] = counts.get(name, 0) + 1
    lines = [f"test sets: {len(tests.names)} pictures; {sum(counts.values())} rows of the corpus show {len(counts)} of them"]
    lines += [f"  {count} x {name}" for name, count in sorted(counts.items())[:most]]
    lines += [f"  and {len(counts) - most} more; selections names them all (reason contaminated)"] if len(counts) > most else []
    lines += [f"  too flat for a hash, excluded by equal bytes alone: {name}" for name in tests.flat]
    lines += [f"  NOT excluded, could not be read: {name} ({why})" for name, why in tests.unreadable.items()]
    return "\n".join(lines)


def _hash(max_pixels: int, picture: Read) -> tuple[str, str, NDArray[Any] | str]:
    from pipelines.stages.measures.tiles import luma
    from supir_model.images import ImageError, decode

    name, data = picture
    if isinstance(data, str):
        return name, "", data
    try:
        grey_HW = luma(decode(data, max_pixels=max_pixels).rgb_HWC)
    except ImageError as error:
        return name, "", f"{error.code}: {error}"
    found = cropped_hashes(grey_HW, boxes(*grey_HW.shape))
    return name, hashlib.sha256(data).hexdigest(), np.concatenate([found, turned(found)])


def _pictures(address: str) -> Iterator[Read]:
    dataset = Dataset(address)
    label = address.rstrip("/").rpartition("/")[2]
    if dataset.store.exists("commits/images/current/00000000.json"):
        for ref in dataset.snapshot("images").shards.values():
            rows = dataset.read(ref, ["image_id", "bytes"])
            yield from ((f"{label}/{row['image_id']}", row["bytes"]) for row in rows.to_pylist())
        return
    source = Source(address)
    store = open_store(source.address)
    for item in source.items():
        try:
            if item.offset is None:
                yield f"{label}/{item.position}", store.read(to_key(item.position))
                continue
            with store.open(to_key(item.position.partition("!")[0])) as file:
                file.seek(item.offset)
                yield f"{label}/{item.position}", file.read(item.size_bytes)
        except StorageError as error:
            yield f"{label}/{item.position}", str(error)
