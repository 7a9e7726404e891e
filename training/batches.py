"""From a position in the global sequence to a training sample: which row, which crop, which degradation, which text.

Everything here is a pure function of (seed, the run's record, position); what is cached only saves time. One lane's shards
are all that a position of that lane can touch, so a worker reads its share of the corpus and no more.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from infra.apart import NotProved, RowsApart
from infra.dataset import Dataset, ShardRef
from infra.holdout import is_held_out
from infra.local_store import LocalStore
from supir_model import images
from supir_model.crops import Crop, decode_crop
from training import sequence
from training.recipes import QUALITY_WORDS, BatchOptions
from training.record import Tables
from training.shards import Opening, Rows
from training.size_condition import SizeIds, size_ids
from training.timesteps import timestep

OPENERS = 4  # choice: shards that a worker fetches and verifies at a time, beside what computes
AHEAD_ROWS = 32  # choice: a shard is opened so many of its lane's draws before its first row is wanted
FIXED_POSITION = 2**48  # validation draws its degradations far behind the last position of any training
LARGE_BYTES = 64 * 2**20  # choice: smaller shards are fetched and verified as a whole in a tenth of a second
MAX_FIXED_SHARDS = 8  # choice: where validation pictures are looked for
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample before it becomes a tensor. `gt_HWC`, `lq_HWC` uint8, the crop and its degradation; `timestep` in 0..999."""

    position: int
    source: str
    image_id: str
    gt_HWC: np.ndarray[Any, Any]
    lq_HWC: np.ndarray[Any, Any]
    prompt: str
    timestep: int
    noise_seed: int
    size_ids: SizeIds | None = None  # where the recipe says `true_sizes`


class Recent(Generic[T]):
    """The most recently used values, up to a total size; nothing is kept where that is 0. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: Hashable, make: Callable[[], T], size: Callable[[T], int] = lambda _: 1) -> T:
        """The value of this name, made if it is not there; two threads that miss it at once both make it, and the first one's stays."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return self._values[name][0]
        value = make()
        if self._limit == 0:
            return value
        with self._lock:
            if name in self._values:
                return self._values[name][0]
            self._values[name] = (value, size(value))
            self._total += self._values[name][1]
            while self._total > self._limit and len(self._values) > 1:
                self._total -= self._values.popitem(last=False)[1][1]
        return value


class SourceReader:
    """The rows of one source of the mixture, by shard and image id, as the run's record fixed them."""

    def __init__(self, one: Tables, *, seed: int, options: BatchOptions, shards_in_memory: int) -> None:
        self.source = one.source
        self._commits = one.tables
        self._shards = one.shards
        self._dataset = Dataset(one.source.url)
        self._taken_down = self._dataset.takedowns()
        self._seed, self._options = seed, options
        self._tables: Recent[Opening] = Recent(max(1, shards_in_memory))
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="open-ahead")
        self._usable: dict[int, tuple[str, ...]] = {}
        self._lanes: dict[int, tuple[sequence.LaneOrder, list[sequence.Unit]]] = {}

    def row(self, lane: int, index: int) -> dict[str, Any]:
        """The lane's index-th row: of the images table, with `caption`. A row that must not be used gives way to the next one.

        Raises ValueError if nothing may be used.
        """
        lanes = self._options.lanes
        for other in range(lanes):  # as a rule the first lane and the first row are taken
            order, units = self._lane((lane + other) % lanes)
            for hop in range(order.rows):  # the others keep their places when one is taken down
                unit, k = order.locate(index + hop)
                shard = units[unit].shard
                usable = self._ids(shard)
                row = self._captioned(shard, usable[units[unit].rows(len(usable))[k]], at_once=True)
                if row is not None and not self._barred(row):
                    self._open_ahead(order, units, index + hop)
                    return row
        raise ValueError(f"{self.source.name}: every row of {self.source.url} is held out or taken down: add images")

    def _open_ahead(self, order: sequence.LaneOrder, units: list[sequence.Unit], index: int) -> None:
        """Start to fetch and verify the shard of a later draw; reading, hashing and decompressing leave the interpreter free."""
        self._opening("images", units[order.locate(index + AHEAD_ROWS)[0]].shard)

    def _barred(self, row: dict[str, Any]) -> bool:
        parent = row.get("parent_image_id")
        held_out = self._options.exclude_heldout and parent is not None and is_held_out(parent)
        return held_out or not self._taken_down.isdisjoint({row["image_id"], row["source_id"], parent})

    def _lane(self, lane: int) -> tuple[sequence.LaneOrder, list[sequence.Unit]]:
        if lane not in self._lanes:
            self._lanes[lane] = self._find_lane(lane)
        return self._lanes[lane]

    def _find_lane(self, lane: int) -> tuple[sequence.LaneOrder, list[sequence.Unit]]:
        """The lane's own units; if none of them has a usable row, those of the next lane that has."""
        lanes = self._options.lanes
        for hop in range(lanes):
            units = sequence.units_of((lane + hop) % lanes, lanes=lanes, shards=len(self._shards))
            list(self._openers.map(self._ids, [unit.shard for unit in units]))  # many small files, at once
            sizes = tuple(len(unit.rows(len(self._ids(unit.shard)))) for unit in units)
            if sum(sizes):
                order = sequence.LaneOrder(
                    seed=self._seed, name=self.source.name, lane=lane, sizes=sizes, window=self._options.window_shards
                )
                return order, units
        found = {table: sum(1 for _ in shards) for table, shards in self._commits.items()}
        raise ValueError(
            f"{self.source.name}: {self.source.url} has no row that may be trained on (shards by table: {found}): "
            "look at the ledger of curate and caption, or add images"
        )

    def _ids(self, shard: int) -> tuple[str, ...]:
        """Ids of a shard's rows that may be trained on, in the shard's order."""
        if shard not in self._usable:
            ids = (image_id for image_id in self.accepted(shard) if not self._held_out(image_id))
            self._usable[shard] = tuple(image_id for image_id in ids if sequence.uniform(0, "fraction", image_id) < self._options.fraction)
        return self._usable[shard]

    def accepted(self, shard: int) -> list[str]:
        """Ids of a shard's rows that were selected and have a caption if one is needed, in the shard's order."""
        known: list[str] = [table for table in ("selections", "captions") if table in self._commits]
        keep = [self._accepted(table, shard) for table in known or ["images"]]
        return [image_id for image_id in keep[0] if all(image_id in other for other in keep[1:])]

    def fixed_rows(self, count: int) -> list[dict[str, Any]]:
        """The same rows whenever they are asked for: held-out ones first, of the first shards, with `caption`."""
        found: list[dict[str, Any]] = []
        for shard in range(min(len(self._shards), MAX_FIXED_SHARDS)):
            rows = (self._captioned(shard, image_id) for image_id in self.accepted(shard))
            found += [row for row in rows if row is not None]
            if sum(is_held_out(row["image_id"]) for row in found) >= count:
                break
        allowed = [row for row in found if self._taken_down.isdisjoint({row["image_id"], row["source_id"]})]
        return sorted(allowed, key=lambda row: not is_held_out(row["image_id"]))[:count]

    def _captioned(self, shard: int, image_id: str, *, at_once: bool = False) -> dict[str, Any] | None:
        """None for a picture whose bytes a takedown has removed: the other tables still name it."""
        caption = self._opening("captions", shard)[image_id]["caption"] if self.source.captions else ""
        try:
            return {**self._opening("images", shard, at_once=at_once)[image_id], "caption": caption}
        except KeyError:
            if self._taken_down:
                return None
            raise

    def _accepted(self, table: str, shard: int) -> dict[str, None]:
        columns = ["image_id", *(["accepted"] if table == "selections" else [])]
        rows = self._read(table, shard, columns)
        return {row["image_id"]: None for row in rows.to_pylist() if row.get("accepted", True)}

    def _held_out(self, image_id: str) -> bool:
        return self._options.exclude_heldout and is_held_out(image_id)

    def _opening(self, table: str, shard: int, *, at_once: bool = False) -> Opening:
        def fetch() -> Future[Rows]:
            return self._openers.submit(self._open, table, shard)

        apart = (lambda: self._apart(table, shard)) if at_once else None
        return self._tables.get((table, shard), lambda: Opening(fetch, apart))

    def _apart(self, table: str, shard: int) -> RowsApart:
        ref, store = self._ref(table, shard), self._dataset.store
        # not tried on S3: the columns beside the images lie in two places of every row group
        if ref is None or not isinstance(store, LocalStore) or store.size(ref.path) < LARGE_BYTES:
            raise NotProved("small, or not on a disk")
        apart = RowsApart(store, ref, _COLUMNS[table])
        self._check_columns(table, apart.columns)
        return apart

    def _open(self, table: str, shard: int) -> Rows:
        rows = self._read(table, shard, _COLUMNS[table])
        self._check_columns(table, rows.column_names)
        return Rows(rows)

    def _check_columns(self, table: str, found: list[str]) -> None:
        """ValueError if a column that is needed is not there."""
        missing = [name for name in _COLUMNS[table] if name not in (*found, *_OPTIONAL)]
        if missing:
            raise ValueError(
                f"{self.source.name}: table {table} of {self.source.url} has no column {', '.join(missing)}, which docs/data.md promises: "
                "it is of another schema version; make the table anew"
            )

    def _read(self, table: str, shard: int, columns: list[str]) -> pa.Table:
        """Those of the columns that the shard has."""
        ref = self._ref(table, shard)
        if ref is None:  # the table does not have this shard (yet): no row of it is usable
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        return self._dataset.read(ref, columns)

    def _ref(self, table: str, shard: int) -> ShardRef | None:
        commit = self._commits[table].get(self._shards[shard])
        return None if commit is None else self._dataset.load_commits([commit])[0]


_OPTIONAL = ("parent_image_id",)  # of negatives
_COLUMNS = {"images": ["image_id", "source_id", "bytes", "parent_image_id"], "captions": ["image_id", "caption"]}


class Batches:
    """Samples by position, for any worker."""

    def __init__(self, sources: list[Tables], *, seed: int, options: BatchOptions, world: int) -> None:
        held = in_memory(options, world)
        self._sources = [SourceReader(one, seed=seed, options=options, shards_in_memory=held) for one in sources]
        self._parts = sequence.shares([one.source.weight for one in sources])
        self._seed, self._options = seed, options
        self._centre = Crop(size_px=options.crop_px, short_side_px=options.short_side_px)
        self._decoded: Recent[np.ndarray[Any, Any]] = Recent(options.cache_mb * 2**20)

    def sample(self, position: int) -> Sample:
        """The sample of one position of the global sequence."""
        from supir_model import degradation

        seed, options = self._seed, self._options
        reader, row, gt_HWC = self.ground_truth(position)
        drawn = degradation.draw(options.degradation, seed, position, options.crop_px)
        return Sample(
            position=position,
            source=reader.source.name,
            image_id=row["image_id"],
            gt_HWC=gt_HWC,
            lq_HWC=degradation.apply_rgb(gt_HWC, drawn),
            prompt=self._prompt(row["caption"], reader, position),
            timestep=timestep(options.timestep, sequence.uniform(seed, "timestep", position)),
            noise_seed=sequence.key(seed, "noise", position) >> 1,
            size_ids=size_ids(row["bytes"], self._draw_crop(position)) if options.true_sizes else None,
        )

    def ground_truth(self, position: int) -> tuple[SourceReader, dict[str, Any], np.ndarray[Any, Any]]:
        """The source, the row and the crop (uint8 HWC) of one position."""
        turn, lane = divmod(position, self._options.lanes)
        source, index = sequence.draw_source(self._seed, lane, turn, self._parts)
        row = self._sources[source].row(lane, index)
        return self._sources[source], row, self._crop(row, self._draw_crop(position))

    def fixed(self, count: int) -> list[Sample]:
        """Samples that never change, of the first source: centre crops of held-out pictures, one degradation for each."""
        from supir_model import degradation

        reader, samples = self._sources[0], []
        for i, row in enumerate(reader.fixed_rows(count)):
            gt_HWC = self._crop(row, self._centre)
            drawn = degradation.draw(self._options.degradation, self._seed, FIXED_POSITION + i, self._options.crop_px)
            sample = Sample(
                position=FIXED_POSITION + i,
                source=reader.source.name,
                image_id=row["image_id"],
                gt_HWC=gt_HWC,
                lq_HWC=degradation.apply_rgb(gt_HWC, drawn),
                prompt=row["caption"] + QUALITY_WORDS[self._options.quality_words],
                timestep=0,
                noise_seed=sequence.key(self._seed, "validation noise", i) >> 1,
            )
            samples.append(sample)
        return samples

    def check(self) -> None:
        """Draw one sample of each source in lane 0; raises what is wrong with the data, before any training."""
        for reader in self._sources:
            row = reader.row(0, 0)
            self._crop(row, self._centre)

    def _crop(self, row: dict[str, Any], crop: Crop) -> np.ndarray[Any, Any]:
        """Of the picture that was kept, or else with no more of it decoded than the crop needs: the same pixels."""
        if self._options.cache_mb == 0:
            return self._decoding(row, lambda data: decode_crop(data, crop))
        whole_HWC = self._decoded.get(row["image_id"], lambda: self._decoding(row, crop.decode_whole), lambda image: image.nbytes)
        return crop.cut(whole_HWC)

    def _draw_crop(self, position: int) -> Crop:
        u_y, u_x, flip = (sequence.uniform(self._seed, purpose, position) for purpose in ("crop top", "crop left", "flip"))
        return replace(self._centre, u_y=u_y, u_x=u_x, mirrored=self._options.flip and flip < 0.5)

    def _decoding(self, row: dict[str, Any], decode: Callable[[images.Encoded], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        try:
            return decode(row["bytes"])
        except images.ImageError as error:
            raise ValueError(f"image {row['image_id']} cannot be decoded ({error}): add its id to the dataset's takedowns") from error

    def _prompt(self, caption: str, reader: SourceReader, position: int) -> str:
        if reader.source.negative or not reader.source.captions:
            return caption
        if sequence.uniform(self._seed, "caption dropout", position) < self._options.caption_dropout:
            return ""
        words = QUALITY_WORDS[self._options.quality_words]
        return caption + words  # joined as they are, as at inference (supir_model.presets.Prompts)


def in_memory(options: BatchOptions, world: int) -> int:
    """Shards of a source that a worker keeps: the window of each of its lanes, and the one that comes next."""
    return 2 * options.window_shards * max(1, options.lanes // world)


def prefetch(make: Callable[[int], T], first: int, last: int, ahead: int, threads: int = 1) -> Iterator[tuple[T, float]]:
    """make(first) … make(last - 1), made ahead, so many at a time, and given in order; with each, how many seconds it was waited for."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode-ahead")
    ahead = max(ahead, 1)
    try:
        pending = deque(pool.submit(make, number) for number in range(first, min(first + ahead, last)))
        for number in range(first, last):
            asked = time.perf_counter()
            value = pending.popleft().result()
            waited_s = time.perf_counter() - asked
            if number + ahead < last:
                pending.append(pool.submit(make, number + ahead))
            yield value, waited_s
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
