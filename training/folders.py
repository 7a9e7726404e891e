"""Folders of weights at any address, as local folders: what a network is loaded from must be on this machine's disk."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from infra.local_store import LocalStore
from infra.stores import open_store

ROOT = Path(__file__).resolve().parents[1]
FILES = (".safetensors", ".ckpt", ".pt", ".pth")  # what an address of one file of weights ends with


def find(url: str) -> str:
    """An address that is good on any worker: local paths become absolute; what is not here may lie in the repository (priors/tiny)."""
    if not url or "://" in url or Path(url).is_absolute():
        return url
    found = [place for place in (Path(url).resolve(), ROOT / url) if place.exists()]
    return str(found[0]) if found else url


def local_weights(url: str) -> Path:
    """A folder of weights, or one file of them, on this machine's disk. ValueError if there is nothing."""
    return local_file(url) if url.endswith(FILES) else local_folder(url)


@cache
def local_folder(url: str) -> Path:
    """The folder itself if it is local, else a copy of it, fetched once per process. ValueError if there is nothing."""
    store = open_store(find(url))
    if isinstance(store, LocalStore):
        folder = Path(store.url)
        if folder.is_file():
            raise ValueError(f"{folder} is a file, expected a folder of weights, or a file that ends with {', '.join(FILES)}")
        if not folder.is_dir():
            raise ValueError(f"folder {folder} does not exist: train or download the weights first, or give another address")
        return folder
    entries = list(store.list())
    if not entries:
        raise ValueError(f"{url} holds no file: train or upload the weights first, or give another address")
    folder = Path(tempfile.mkdtemp(prefix="weights-"))
    for entry in entries:
        path = folder / entry.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(entry.key))
    return folder


@cache
def local_file(url: str) -> Path:
    """The file itself if it is local, else a copy of it, fetched once per process. ValueError if there is nothing."""
    folder, _, name = find(url).rpartition("/")
    store = open_store(folder)
    local = Path(store.url, name) if isinstance(store, LocalStore) else None  # perhaps a link into a hub's cache
    if not (local.is_file() if local else store.exists(name)):
        raise ValueError(f"file {url} does not exist: give another address")
    if local:
        return local
    path = Path(tempfile.mkdtemp(prefix="weights-"), name)
    path.write_bytes(store.read(name))
    return path
