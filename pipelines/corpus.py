#!/usr/bin/env python3
"""From sources to a selection in one command: ingest every source into one dataset, measure, select.

    python pipelines/corpus.py --output corpus/ --set 'sources=["photos/", "urls=list.csv"]' --set ingest.web.contact=me@example.org
    python pipelines/corpus.py --recipe paper_20m --output s3://corpus/v1 --set 'sources=["pd12m=s3://sources/PD12M/metadata"]'

It is pipelines/ingest.py for each source and then pipelines/curate.py, on one cluster. The same command again does what is pending.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
from dataclasses import fields, replace

from infra.config import ConfigError, RunOptions, run_entry
from infra.dataset import Dataset
from pipelines import curate, ingest
from pipelines.recipes import ingest as ingest_recipes
from pipelines.recipes.corpus import RECIPES, CorpusConfig
from pipelines.recipes.ingest import IngestConfig
from pipelines.runtime.cluster import shared_cluster


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/corpus.py", summary="sources -> images -> scores -> selections", recipes=RECIPES, main=run)


def run(config: CorpusConfig, options: RunOptions) -> int:
    """Every source, then the selection."""
    if not config.sources:
        raise ConfigError("""sources is empty: give --set 'sources=["photos/", "urls=list.csv"]'""")
    sources = [source(config, one) for one in config.sources]
    with shared_cluster():
        for one in sources:
            ingest.run(one, options)
        if options.dry_run and not Dataset(config.output).has("images"):
            print("curate: planned when the images are there")
            return 0
        return curate.run(replace(config.curate, input=config.output), options)


def source(config: CorpusConfig, text: str) -> IngestConfig:
    """How one source is ingested: as its recipe says, with what all sources share."""
    name, equals, address = text.partition("=")
    near = difflib.get_close_matches(name, ingest_recipes.RECIPES, n=1)
    if equals and name not in ingest_recipes.RECIPES and near:
        raise ConfigError(f"sources: unknown recipe {name!r} in {text!r}: did you mean {near[0]!r}? (For a path: ./{text})")
    if not equals or name not in ingest_recipes.RECIPES:
        return replace(config.ingest, input=text, output=config.output)
    recipe, shared = with_changes(ingest_recipes.RECIPES[name](), config.ingest), config.ingest
    limits = {key: getattr(shared, key) for key in ("max_bytes", "max_pixels", "shard", "workers", "retry_failed")}
    return replace(recipe, input=address, output=config.output, **limits)


def with_changes(recipe: IngestConfig, shared: IngestConfig) -> IngestConfig:
    """The recipe with what of `shared` is not as it is without a hand: --set ingest.columns.url=… reaches every source."""
    plain = IngestConfig(input="", output="")
    changed = {}
    for group in ("web", "columns", "wanted"):
        before, after = getattr(plain, group), getattr(shared, group)
        names = [one.name for one in fields(before) if getattr(before, one.name) != getattr(after, one.name)]
        changed[group] = replace(getattr(recipe, group), **{one: getattr(after, one) for one in names})
    return replace(recipe, **changed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
