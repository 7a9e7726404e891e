"""Where photographs come from: a folder, an S3 prefix, WebDataset tars in either, a picture, tables. Lists what is there; fetches nothing.

An item is one thing asked for. A folder's items are its files with an image's suffix; a tar's items are its members with one, and
members of the same stem say more about them (`.txt`: caption, `.json`: licence and origin). A CSV file tells the same of a folder:
`photos.csv` in it, or `<folder>.csv` beside it, with a column `file`; and img2dataset's `<folder>.parquet`. The order is that of the
names, always. Tables (URLs, Parquet with pictures in it) are only named here: pipelines/table_shards.py reads them.
"""

from __future__ import annotations

import os
import stat
import tarfile
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from infra.local_store import LocalStore
from infra.storage import NotFound, OutsideStore, StorageError, Store
from infra.stores import open_store
from pipelines import ffhq
from pipelines.provenance import Provenance, parse_csv, provenance_of
from pipelines.table_columns import Columns, UnusableTable
from pipelines.table_files import TableFile, is_table, lists_urls, look, told_by_record
from pipelines.tars import BROKEN_TAR, CAPTION_SUFFIXES, read_headers, tell

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".mpo")
TAR_SUFFIX = ".tar"
SIDECAR = "photos.csv"
QUOTED = "bytes:"  # a name that is not Unicode text stands percent-encoded behind this


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing asked for: `position` is a file's path in the source, or `tar!member`; `offset` is where a member's bytes begin."""

    position: str
    size_bytes: int
    offset: int | None = None
    provenance: Provenance = field(default_factory=Provenance)
    problem: str | None = None  # why it is not asked for, as `inputs.problem`


@dataclass
class Source:
    """A listing of one address. While it is read, `skipped` counts by suffix the files that are no images by their names, and `tables`
    takes the names of tables: with `tables_too` every Parquet file and a table that is addressed itself, with `lists` all of them.
    """

    url: str
    sidecar: str = ""
    tables_too: bool = False
    lists: bool = False
    columns: Columns = field(default_factory=Columns)
    skipped: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    stems: set[str] = field(default_factory=set)  # of tars and folders, beside which img2dataset puts its records
    _told_by: str = ""  # the CSV in the source that tells of its files
    _record: tuple[str, dict[str, Provenance]] = ("", {})  # the last folder, and what its record tells

    @property
    def is_one_file(self) -> bool:
        """Whether the address names a single tar, picture or table."""
        return self._place()[1] is not None

    @property
    def address(self) -> str:
        """The folder or prefix that positions are relative to."""
        return self._place()[0]

    def _place(self) -> tuple[str, str | None]:
        """(address, the one key that was asked for when the source is a single tar or picture)."""
        store = open_store(self.url)
        folder, _, name = store.url.rpartition("/")
        is_one = os.path.splitext(name)[1].lower() in (TAR_SUFFIX, *IMAGE_SUFFIXES) or (self.tables_too and is_table(name))
        if is_one and not (isinstance(store, LocalStore) and Path(store.url).is_dir()):
            return folder or "/", name
        return store.url, None

    def items(self) -> Iterator[Item]:
        """Every item, in the order of the names. Raises StorageError when the address is missing or may not be listed."""
        address, only = self._place()
        store = open_store(address)
        _check_there(store)
        told = self._read_sidecar(store, only)
        self.tables.clear()
        for key, size_bytes in _files(store, self.skipped) if only is None else _one(store, only):
            suffix = os.path.splitext(key)[1].lower()
            self.stems |= {key.removesuffix(TAR_SUFFIX)} if suffix == TAR_SUFFIX else {key.rpartition("/")[0]}
            if self._is_table(key, only):
                self.tables.append(key)
            elif suffix == TAR_SUFFIX:
                yield from self._members(store, key, size_bytes)
            elif suffix in IMAGE_SUFFIXES or key.endswith("/"):
                yield Item(position=to_position(key), size_bytes=size_bytes, provenance=told.get(key) or self._recorded(store, key))
            elif key not in (self.sidecar, self._told_by):
                self.skipped[suffix or "no suffix"] += 1

    def table(self, key: str, columns: Columns) -> TableFile:
        """One of `tables`, opened. Raises table_columns.UnusableTable."""
        return look(open_store(self.address), key, columns, beside=os.path.splitext(key)[0] in self.stems)

    def _is_table(self, key: str, only: str | None) -> bool:
        if not self.tables_too or not is_table(key) or (key in (self.sidecar, self._told_by) and only is None):
            return False
        return only is not None or self.lists or key.lower().endswith(".parquet")

    def _read_sidecar(self, store: Store, only: str | None) -> dict[str, Provenance]:
        """File -> provenance from the CSV that was named, from photos.csv in the source, or from <folder>.csv beside a local one.

        The last two may as well be lists of URLs; of a single table or tar they tell nothing.
        """
        if self.sidecar.endswith(".json"):
            return ffhq.parse_json(store.read(self.sidecar), self.sidecar)
        if self.sidecar:
            return parse_csv(store.read(self.sidecar), self.sidecar)
        if only is not None and os.path.splitext(only)[1].lower() not in IMAGE_SUFFIXES:
            return {}
        places = [(store, SIDECAR)]
        if isinstance(store, LocalStore):
            folder = Path(store.url)
            places.append((open_store(str(folder.parent)), f"{folder.name}.csv"))
        for place, key in places:
            try:
                if not lists_urls(place, key):
                    told = parse_csv(place.read(key), key)
                    self._told_by = key if place is store else ""
                    return told
            except NotFound:
                continue
        return {}

    def _recorded(self, store: Store, key: str) -> Provenance:
        """What the record that img2dataset put beside a picture's folder says of it."""
        folder, _, name = key.rpartition("/")
        if folder != self._record[0]:
            self._record = folder, {}
            if f"{folder}.parquet" in self.tables:
                with suppress(UnusableTable):  # as a table it is told of
                    told = told_by_record(store, f"{folder}.parquet", self.columns)
                    self._record = folder, {key: provenance_of(record) for key, record in told.items()}
        return self._record[1].get(os.path.splitext(name)[0], Provenance())

    def _members(self, store: Store, key: str, size_bytes: int) -> Iterator[Item]:
        """The pictures in one tar. A tar that breaks off is itself an item after them, so that its failure stands in the ledger."""
        try:
            with store.open(key) as file:
                members, whole = read_headers(file)
                told = {stem: tell(file, parts) for stem, parts in members.items()}
        except StorageError as error:
            if not isinstance(error, NotFound | OutsideStore) and not isinstance(error.__cause__, PermissionError):
                raise  # storage is away: nothing is said of the tar
            yield Item(position=to_position(key), size_bytes=size_bytes)
            return
        seen: set[str] = set()
        for stem, parts in members.items():
            yield from self._pictures(key, parts, told[stem], seen)
        if not whole:
            yield Item(position=to_position(key), size_bytes=size_bytes, problem=BROKEN_TAR if size_bytes else None)

    def _pictures(self, key: str, parts: list[tarfile.TarInfo], provenance: Provenance, seen: set[str]) -> Iterator[Item]:
        for part in parts:
            suffix = os.path.splitext(part.name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                again = f"@{part.offset_data}" if part.name in seen else ""  # a tar may hold one name twice
                seen.add(part.name)
                position = f"{to_position(key, tar=True)}!{to_position(part.name)}{again}"
                yield Item(position=position, size_bytes=part.size, offset=part.offset_data, provenance=provenance)
            elif suffix not in (*CAPTION_SUFFIXES, ".json"):
                self.skipped[suffix or "no suffix"] += 1


# names

def to_position(key: str, tar: bool = False) -> str:
    """A key as text that a table can hold: percent-encoded where the name is not valid Unicode (or, of a tar, holds a `!`)."""
    plain = not key.startswith(QUOTED) and not (tar and "!" in key) and not any("\ud800" <= c <= "\udfff" for c in key)
    return key if plain else QUOTED + urllib.parse.quote(os.fsencode(key), safe="/")


def to_key(position: str) -> str:
    """The inverse of `to_position`; of `tar!member` give the part before the `!`."""
    if not position.startswith(QUOTED):
        return position
    return os.fsdecode(urllib.parse.unquote_to_bytes(position.removeprefix(QUOTED)))


# listing

def _check_there(store: Store) -> None:
    if any("\ud800" <= c <= "\udfff" for c in store.url):
        raise StorageError(f"the address {os.fsencode(store.url)!r} is no Unicode text, and stands in every row: rename the folder, "
                           "or mount it elsewhere")
    if isinstance(store, LocalStore) and not Path(store.url).is_dir():
        raise NotFound(f"{store.url} is not a folder: give --input a folder of photographs, one of them, a .tar, a table (.parquet, .csv, "
                       ".tsv, .txt, .gz of the last three), or s3://bucket/prefix")
    store.check()


def _files(store: Store, skipped: Counter[str]) -> Iterator[tuple[str, int]]:
    """(key, size in bytes) of every file. A folder that may not be listed is yielded itself, with a slash behind its name."""
    if isinstance(store, LocalStore):
        yield from _walk(store.url, "", skipped)
    else:
        yield from ((entry.key, entry.size_bytes) for entry in store.list() if not entry.key.endswith("/"))


def _one(store: Store, key: str) -> Iterator[tuple[str, int]]:
    yield key, store.size(key)


def _walk(root: str, folder: str, skipped: Counter[str]) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(os.path.join(root, folder)) as scan:
            entries = [(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name, entry) for entry in scan]
    except OSError:
        yield folder, 0
        return
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        if name.endswith("/"):
            yield from _walk(root, folder + name, skipped)
        else:
            yield from _one_file(folder + name, entry, skipped)


def _one_file(key: str, entry: os.DirEntry[str], skipped: Counter[str]) -> Iterator[tuple[str, int]]:
    """A regular file or a link; pipes and devices are none, and a linked folder is not entered."""
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere: asked for, so its failure is kept
        yield key, 0
        return
    if stat.S_ISREG(status.st_mode):
        yield key, status.st_size
    elif stat.S_ISDIR(status.st_mode):
        skipped["linked folder"] += 1
