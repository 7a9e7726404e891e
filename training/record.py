"""The record of a run: its configuration and the exact data it draws from, fixed when the run begins.

    run.json        created once, in the output folder: configuration, mixture, for each source its tables' commits, for weights a hash
                    of what they hold
    finished.json   created once, at the end

The same command again finds run.json and continues. A corpus that has grown meanwhile changes nothing for a run that has
begun: it reads the commits that it was begun with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from infra.config import to_dict
from infra.dataset import Dataset, NoSuchTable, Snapshot, hash_config
from infra.storage import Store, read_json
from infra.stores import hash_weights, open_store
from training.folders import find
from training.recipes import RunConfig, Source

RECORD, FINISHED = "run.json", "finished.json"
FREE = ("output", "launch", "engine", "compute", "checkpoint", "validation", "batch.micro_batch", "batch.decode_ahead",
        "batch.decode_threads", "batch.cache_mb")
"""Fields that may differ when a run is continued: none of them changes what a step computes, beyond rounding.

`steps` may too, where the learning rate does not follow it.
"""

ADDRESSES = ("prior", "encoder", "perceptual")
"""Fields that say where weights lie. A run is known by what lies there: it may have moved, and must not have changed."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """One source of the mixture as it was when the run began: table -> shard -> name of the commit."""

    source: Source
    tables: dict[str, dict[str, str]]

    @property
    def shards(self) -> list[str]:
        """Shards in the order that lanes count them."""
        return sorted(self.tables["images"])


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run is. `digest` names it: configuration without the free fields, and the content of its data and its weights."""

    config: dict[str, Any]
    sources: list[Tables]
    digest: str
    weights: dict[str, str] = field(default_factory=dict)  # field of the configuration -> hash of the folder or file


def survey(config: RunConfig, *, captions: bool) -> Record:
    """Look at the datasets of the mixture and write down what is there. Raises NoSuchTable and ValueError that teach."""
    sources, digests = [], []
    for source in config.sources:
        dataset = Dataset(source.url)
        chosen = not source.negative or dataset.has("selections")  # negatives were made of pictures that had been selected
        wanted = ["images", *(["selections"] if chosen else []), *(["captions"] if captions else [])]
        snapshots = {table: _snapshot(dataset, table, source) for table in wanted}
        if not snapshots["images"].rows:
            raise ValueError(f"{source.name}: {source.url} has no images: run ingest on it first")
        found = Source(**{**vars(source), "url": dataset.store.url, "captions": captions})
        commits = {table: {s: ref.commit_name for s, ref in snap.shards.items()} for table, snap in snapshots.items()}
        sources.append(Tables(source=found, tables=commits))
        digests.append({table: snap.digest for table, snap in snapshots.items()})
    plain = to_dict(config)
    return Record(config=plain, sources=sources, digest=hash_config([_fixed(plain), digests]))


def with_weights(found: Record) -> Record:
    """The record with a hash of every folder or file of weights, all of which is read for it. Raises NotFound and StorageError."""
    there = {name: find(found.config[name]) for name in ADDRESSES if found.config.get(name)}
    if not found.config.get("perceptual_weight"):
        there.pop("perceptual", None)
    weights = {name: hash_weights(url) for name, url in there.items()}
    return replace(found, weights=weights, digest=hash_config([found.digest, weights]))


def _snapshot(dataset: Dataset, table: str, source: Source) -> Snapshot:
    try:
        return dataset.snapshot(table)
    except NoSuchTable as error:
        job = {"images": "ingest", "captions": "caption", "selections": "curate"}[table]
        raise NoSuchTable(f"{source.name}: {error} (python pipelines/{job}.py)") from error


def begin_or_continue(output: str, record: Record) -> Record:
    """The record that stands in the output folder: this one if the run is new, else the earlier one, which must be the same run."""
    store = open_store(output)
    sources = [_tables_to_json(one) for one in record.sources]
    data = {"config": record.config, "digest": record.digest, "sources": sources, "weights": record.weights}
    if not store.exists(RECORD) and store.create(RECORD, json.dumps(data, indent=1, sort_keys=True).encode()):
        return record
    earlier = load(output)
    differing = _differences("", _fixed(earlier.config), _fixed(record.config))
    differing += _differences("the content of ", earlier.weights, record.weights)
    if differing:
        raise ValueError(
            f"{store.url} holds a run of another configuration: {'; '.join(differing[:4])}. "
            "Choose another --output for a new run, or give the same values to continue this one"
        )
    return earlier


def load(output: str) -> Record:
    """The record of a run that has begun."""
    store = open_store(output)
    if not store.exists(RECORD):
        raise ValueError(f"{store.url} holds no {RECORD}: give the output folder of a training")
    data = read_json(store, RECORD, "restore it from a copy, or choose another --output")
    try:
        sources = [Tables(source=Source(**one["source"]), tables=one["tables"]) for one in data["sources"]]
        return Record(config=data["config"], sources=sources, digest=data["digest"], weights=data["weights"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{store.url}/{RECORD} is no record of this version ({type(error).__name__}: {error}): continue with the version that "
            "began the run, or choose another --output"
        ) from error


def present(sources: list[Tables]) -> list[Tables]:
    """The same rows where they lie now. What was taken down is gone from its shards, which `gc` has committed anew without it.

    ValueError for a commit that has no successor.
    """
    return [_present(one) if Dataset(one.source.url).takedowns() else one for one in sources]


def _present(one: Tables) -> Tables:
    dataset = Dataset(one.source.url)
    tables: dict[str, dict[str, str]] = {}
    for table, shards in one.tables.items():
        known: dict[str, set[str]] = {}  # of the table's versions
        tables[table] = {}
        for shard, name in shards.items():
            version = name.split("/")[2]
            if version not in known:
                known[version] = set(dataset.committed(table, version).values())
            if name not in known[version]:
                name = _successor(dataset, table, version, shard, name)
            tables[table][shard] = name
    return Tables(source=one.source, tables=tables)


def _successor(dataset: Dataset, table: str, version: str, shard: str, name: str) -> str:
    found = dataset.snapshot(table, version).shards.get(shard)
    if found is None:
        raise ValueError(
            f"{dataset.store.url}/{name}, which the run was begun with, is gone, and nothing stands in its place: restore it from a copy, "
            "or choose another --output for a new run"
        )
    return found.commit_name


def finished_steps(store: Store) -> int:
    """Steps of a run that has ended here, else 0."""
    return int(read_json(store, FINISHED, "delete it, and the same command ends the run again")["steps"]) if store.exists(FINISHED) else 0


def finish(store: Store, steps: int, tracker_run_id: str) -> None:
    """Say that the run has ended, after its weights were exported."""
    store.delete(FINISHED)  # of a run that was continued with more steps
    store.create(FINISHED, json.dumps({"steps": steps, "tracker_run_id": tracker_run_id}).encode())


def _tables_to_json(one: Tables) -> dict[str, Any]:
    return {"source": vars(one.source), "tables": one.tables}


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the fields that may change between attempts."""
    kept = json.loads(json.dumps(config))
    for path in (*FREE, *ADDRESSES, *(["steps"] if config["optimizer"]["lr_end_fraction"] == 1 else [])):
        *parents, name = path.split(".")
        inner = kept
        for parent in parents:
            inner = inner[parent]
        inner.pop(name, None)
    return kept  # type: ignore[no-any-return]


def _differences(prefix: str, earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted({*earlier, *now}):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(f"{prefix}{name}.", before, after)
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, now {after!r}")
    return found
