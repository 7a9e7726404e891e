"""Where a worker finds a folder of weights."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def local_folder(address: str) -> str:
    """The absolute path of a folder of weights; a relative one is looked for from here and from the root of the repository.

    Under `ray job submit` every node has its own copy of the working directory, so relative paths are resolved where they are
    read. Raises ValueError if there is no such folder.
    """
    for path in (Path(address).expanduser(), ROOT / address):
        if path.is_dir():
            return str(path.resolve())
    raise ValueError(f"no folder of weights at {address!r} ({looked_from()}): pass the path of a folder that every worker can read")


def looked_from() -> str:
    """Where relative paths were looked for, in words."""
    return "looked from " + " and from ".join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))


def is_local(address: str) -> bool:
    """Whether an address names a folder of this machine and not a model of a hub (`owner/name`)."""
    looks_local = address.startswith(("/", ".", "~")) or address.count("/") != 1
    return looks_local or any(path.is_dir() for path in (Path(address).expanduser(), ROOT / address))


def identity(address: str, revision: str | None = None) -> str:
    """What names these weights wherever they lie: the hash of a folder's files, or a hub's id and revision."""
    return folder_identity(address) if is_local(address) else f"{address}@{revision or 'main'}"


def folder_identity(address: str) -> str:
    """The hash of a folder's files. Raises ValueError if there is no such folder."""
    from infra.storage import hash_folder

    return hash_folder(local_folder(address))
