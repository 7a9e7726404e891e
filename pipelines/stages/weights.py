"""Where a worker finds weights: in a folder, on S3, at the hub; what is far away comes to a node once."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def local_folder(address: str, identity: str = "") -> str:
    """The absolute path of a folder of weights; one on S3 is brought to this node and must have the hash `identity`, if that is given.

    A relative path is looked for from here and from the root of the repository: under `ray job submit` every node has its own copy
    of the working directory. Raises ValueError if there is no such folder.
    """
    if address.startswith("s3://"):
        from pipelines.stages.node_weights import from_s3

        return str(from_s3(address, identity))
    for path in (Path(address).expanduser(), ROOT / address):
        if path.is_dir():
            return str(path.resolve())
    raise ValueError(f"no folder of weights at {address!r} ({looked_from()}): pass the path of a folder that every worker can read, or "
                     "s3://bucket/prefix")


def local_model(address: str, revision: str | None = None, identity: str = "") -> str:
    """The same for a model that may also be a hub's (`owner/name`)."""
    if is_local(address):
        return local_folder(address, identity)
    from pipelines.stages.node_weights import from_hub

    return str(from_hub(address, revision))


def looked_from() -> str:
    """Where relative paths were looked for, in words."""
    return "looked from " + " and from ".join(dict.fromkeys([str(Path.cwd()), str(ROOT)]))


def is_local(address: str) -> bool:
    """Whether an address names a folder (of this machine or of S3) and not a model of a hub (`owner/name`)."""
    looks_local = address.startswith(("/", ".", "~", "s3://")) or address.count("/") != 1
    return looks_local or any(path.is_dir() for path in (Path(address).expanduser(), ROOT / address))


def identity(address: str, revision: str | None = None) -> str:
    """What names these weights wherever they lie: the hash of a folder's files, or a hub's id and revision."""
    return folder_identity(address) if is_local(address) else f"{address}@{revision or 'main'}"


def folder_identity(address: str) -> str:
    """The hash of a folder's files. Raises ValueError if there is no such folder, and StorageError if S3 refuses."""
    from infra.stores import hash_folder

    return hash_folder(address if address.startswith("s3://") else local_folder(address))
