#!/usr/bin/env python3
"""Versions of a dataset: show them, name one, compare two, copy one to another address.

    python pipelines/versions.py --recipe show --input s3://corpus/v1
    python pipelines/versions.py --recipe tag  --input s3://corpus/v1 --name 2026-11 --set why="what adaptor 3 was trained on"
    python pipelines/versions.py --recipe diff --input s3://corpus/v1 --before 2026-11      # against the current state
    python pipelines/versions.py --recipe copy --input s3://corpus/v1 --output s3://elsewhere/v1 --name 2026-11
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

from infra import gc, versions
from infra.config import ConfigError, RunOptions, run_entry
from infra.dataset import Dataset
from infra.lease import lease
from pipelines.export import write_list
from pipelines.recipes.versions import RECIPES, VersionsConfig

FLAGS = {"name": "a tag", "before": "a tag or a version", "after": "a tag or a version (default: the current state)"}
SHOW_EVERY_S = 2.0


def main(argv: list[str]) -> int:
    """The command line."""
    summary = "show, name, compare and copy versions of a dataset"
    return run_entry(argv, prog="pipelines/versions.py", summary=summary, recipes=RECIPES, main=run, default="show", flags=FLAGS)


def run(config: VersionsConfig, options: RunOptions) -> int:
    """Do the one that the recipe names."""
    dataset = Dataset(config.input)
    dataset.store.check()
    actions = {"show": show, "tag": tag, "diff": diff, "copy": copy}
    if config.action not in actions:
        raise ConfigError(f"action is {config.action!r}, expected one of: {', '.join(actions)}")
    actions[config.action](config, dataset, options)
    return 0


def show(config: VersionsConfig, dataset: Dataset, options: RunOptions) -> None:
    """Tables with their versions, and tags."""
    for table in dataset.tables():
        found = dataset.versions(table)
        current = f"current {found[-1]}, {dataset.snapshot(table).rows} rows" if found else "nothing published yet"
        print(f"{table:<12} {len(found)} versions, {current}{_lost(dataset, table, found)}")
    for name in versions.names(dataset):
        print(_told(versions.read(dataset, name)))


def _lost(dataset: Dataset, table: str, found: list[str]) -> str:
    """How many rows takedowns took from each version, the oldest first."""
    counts = {version: dataset.snapshot(table, version).ledger.rejected.get(gc.TAKEN_DOWN, 0) for version in found}
    return "".join(f"; version {version} without {count} rows that were taken down" for version, count in counts.items() if count)


def tag(config: VersionsConfig, dataset: Dataset, options: RunOptions) -> None:
    """Name the current state."""
    if options.dry_run:
        print(f"tag: would name the current state of {dataset.store.url} {config.name!r}")
        return
    print(_told(versions.tag(dataset, config.name, config.why)))


def diff(config: VersionsConfig, dataset: Dataset, options: RunOptions) -> None:
    """Rows by what became of them."""
    if not config.before:
        tags = ", ".join(versions.names(dataset)) or "there is none"
        raise ConfigError(f"--before is wanted: a tag ({tags}) or a version of {config.table!r}")
    before, after = (versions.state(dataset, config.table, which) for which in (config.before, config.after))
    print("\n".join(versions.describe(versions.diff(dataset, before, after))))


def copy(config: VersionsConfig, dataset: Dataset, options: RunOptions) -> None:
    """A state with its commits."""
    if not config.output:
        raise ConfigError("--output is wanted: where the copy goes")
    target = Dataset(config.output)
    if target.store.url == dataset.store.url:
        raise ConfigError(f"--input and --output are both {config.input}")
    target.store.check(write=True)
    names = [table for table in dataset.tables() if dataset.has(table)]
    tables = versions.read(dataset, config.name).tables if config.name else {table: dataset.snapshot(table) for table in names}
    print(f"copy: {sum(len(one.shards) for one in tables.values())} shards of {', '.join(tables)} to {target.store.url}", flush=True)
    if options.dry_run:
        return
    with lease(target.store, "copy"):
        shown = time.monotonic()
        for done, total, size_bytes in versions.copy(dataset, target, tables, config.name):
            if time.monotonic() - shown > SHOW_EVERY_S or done == total:
                shown = time.monotonic()
                print(f"copy: {done}/{total} shards, {size_bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)
    hits = gc.take_down(target, target.takedowns(), "taken down here before it was copied again")
    same = "equal digests on both sides" if not hits else f"{len(hits)} shards without what was taken down here; digests of the source"
    print(f"copied: {same} {sorted(one.digest[:8] for one in tables.values())}")
    if "exports" in tables:
        write_list(target, target.snapshot("exports"))


def _told(tagged: versions.Tagged) -> str:
    rows = ", ".join(f"{table} {snapshot.rows}" for table, snapshot in tagged.tables.items())
    lost = "".join(f"; {table} lost {count} rows to takedowns since" for table, count in tagged.lost.items())
    return f"tag {tagged.name}: {tagged.made_at}, rows: {rows}{lost}{f' ({tagged.why})' if tagged.why else ''}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
