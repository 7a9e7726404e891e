"""Test sets are kept out of the corpus: their pictures are hashed in many forms, and what matches one of them is not selected.

A test set is a folder, an S3 prefix, a tar or a dataset. Each of its pictures is hashed whole and as the crops of CROP_SHARES (centre,
corners, strips), each mirrored and turned in all eight ways; a picture of the corpus matches when its hash lies near to one of these,
or when its bytes are equal. docs/results/duplicates.md holds the recall by transform. Photographs that infra/holdout.py holds out of
training are another matter: they stay in the corpus, and since duplicates are removed no copy of them is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.dataset import Dataset
from infra.storage import StorageError, open_store
from pipelines.duplicates import matches
from pipelines.sources import Source, to_key
from pipelines.stages.hashes import WORDS, cropped_hashes, eight_forms

CROP_SHARES = tuple(round(1 - 0.03 * step, 2) for step in range(1, 11))  # choice: 0.97 to 0.70; the hash bears 2 % (measured)
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
    return TestPictures(names=names, image_ids=image_ids, owner_M=owner, unreadable=unreadable,
                        words_M4=np.concatenate(forms) if forms else np.zeros((0, WORDS), np.uint64))


def contaminated(image_ids: NDArray[Any], words_N4: NDArray[Any], is_clear_N: NDArray[Any], tests: TestPictures, radius: int,
                 ) -> dict[int, str]:
    """Row -> name of the (first) test picture that it shows. `image_ids` as bytes; rows that are not clear match by their bytes alone."""
    nobody = len(tests.names)
    owner = np.full(len(words_N4), nobody)
    clear = np.flatnonzero(is_clear_N)
    for rows, of in matches(words_N4[clear], tests.words_M4, radius, first=True):  # in the order of the owners
        np.minimum.at(owner, clear[rows], tests.owner_M[of])
    by_id: dict[bytes, int] = {}
    for n, image_id in enumerate(tests.image_ids):
        by_id.setdefault(bytes.fromhex(image_id).rstrip(b"\0"), n)
    for row in np.flatnonzero(np.isin(image_ids, np.array(list(by_id), dtype="S32"))).tolist():
        owner[row] = by_id[bytes(image_ids[row])]
    return {row: tests.names[owner[row]] for row in np.flatnonzero(owner < nobody).tolist()}


def told(tests: TestPictures, removed: Iterable[str], most: int = 20) -> str:
    """What the job prints."""
    counts: dict[str, int] = {}
    for name in removed:
        counts[name] = counts.get(name, 0) + 1
    lines = [f"test sets: {len(tests.names)} pictures; {sum(counts.values())} rows of the corpus show {len(counts)} of them"]
    lines += [f"  {count} x {name}" for name, count in sorted(counts.items())[:most]]
    lines += [f"  and {len(counts) - most} more; selections names them all (reason contaminated)"] if len(counts) > most else []
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
    return name, hashlib.sha256(data).hexdigest(), eight_forms(cropped_hashes(grey_HW, CROP_SHARES))


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
