#!/usr/bin/env python3
"""Take photographs from folders, S3 prefixes, WebDataset tars, Parquet files or URL tables into a dataset of image shards, bytes untouched.

    python pipelines/ingest.py --input photos/ --output corpus/
    python pipelines/ingest.py --recipe paper_20m --input s3://sources/photographs --output s3://corpus/v1
    python pipelines/ingest.py --recipe urls --input list.parquet --output corpus/ --set columns.url=URL --set web.contact=me@example.org

First the driver lists the source in sorted order and commits what is new as shards of the table `inputs`; then workers fetch those
shards into the table `images`. Run it again after files were added and only they are fetched. What could not be read is a failed row
with the reason; `--set retry_failed=true` asks for such rows once more, in new shards (see pipelines/inputs_table.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra import gc
from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, NoSuchTable
from pipelines import inputs_table, table_shards
from pipelines.recipes.ingest import RECIPES, IngestConfig
from pipelines.runtime.job import run_stage
from pipelines.runtime.stage import version_of
from pipelines.sources import Source
from pipelines.stages.fetch import Fetch


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/ingest.py", summary="photographs -> image shards, bytes untouched", recipes=RECIPES, main=run)


def run(config: IngestConfig, options: RunOptions) -> int:
    """List, then fetch."""
    dataset = Dataset(config.output)
    dataset.store.check()
    check_apart(config, dataset)
    stage = Fetch(max_bytes=config.max_bytes, max_pixels=config.max_pixels, image_column=config.columns.image,
                  web=config.web.shared_by(config.workers.workers))
    if options.dry_run:
        show_plan(config, dataset)
    else:
        list_inputs(config, dataset, stage)
        gc.take_down(dataset, dataset.takedowns(), "reached by an earlier one")  # fetched shards are rewritten, not fetched again
    if dataset.has("inputs"):
        run_stage(stage, source=dataset, inputs={"inputs": dataset.snapshot("inputs")}, output=dataset, options=options,
                  workers=config.workers, params_for_shard=inputs_table.taken_down_by_shard(dataset))
    return 0


def check_apart(config: IngestConfig, dataset: Dataset) -> None:
    """Raise ValueError if the dataset lies in its own source: its Parquet files hold pictures, and would be taken for sources."""
    source = source_of(config)
    if not source.is_one_file and f"{dataset.store.url}/".startswith(f"{source.address.rstrip('/')}/"):
        raise ValueError(f"--output {dataset.store.url} lies in --input {source.address}, so that the next run would take the dataset's "
                         "own files for sources: give an --output beside the input, or an --input below it")


def list_inputs(config: IngestConfig, dataset: Dataset, stage: Fetch) -> None:
    """Commit what the source holds and the table does not, and what is to be retried; publish the table."""
    source = source_of(config)
    while not inputs_table.append(dataset, files(config, dataset, source)):
        print("inputs: another driver was first; listing again", flush=True)
    while not inputs_table.append_tables(dataset, tables(config, dataset, source)):
        print("inputs: another driver was first; reading the tables again", flush=True)
    while config.retry_failed and not inputs_table.append(dataset, inputs_table.group(failed(config, dataset, stage), config.shard)):
        print("inputs: another driver was first; looking at the failures again", flush=True)
    snapshot = inputs_table.publish(dataset)
    print(f"inputs: {snapshot.rows} rows in {len(snapshot.shards)} shards; not images by their names: "
          f"{', '.join(f'{count} {suffix}' for suffix, count in sorted(source.skipped.items())) or 'none'}", flush=True)
    if config.expected_rows and abs(snapshot.rows - config.expected_rows) > 0.01 * config.expected_rows:
        print(f"inputs: {snapshot.rows} rows, this recipe expects about {config.expected_rows}: is the source whole?", flush=True)


def source_of(config: IngestConfig) -> Source:
    """The address, with its tables."""
    return Source(config.input, config.sidecar, tables_too=True, lists=config.lists, columns=config.columns)


def files(config: IngestConfig, dataset: Dataset, source: Source) -> Iterator[list[inputs_table.Row]]:
    """Shards of new files and members of tars; the source's tables are known afterwards."""
    return inputs_table.group(inputs_table.new_rows(dataset, source, config.source_name, config.wanted), config.shard)


def tables(config: IngestConfig, dataset: Dataset, source: Source) -> Iterator[inputs_table.Piece]:
    """Shards of new rows of tables. Raises ValueError when the web would be asked by nobody, or by nobody knows how many."""
    if any(table.kind == "url" for table in table_shards.tables_of(source, config.columns)):
        check_polite(config)
    options = table_shards.TableOptions(columns=config.columns, wanted=config.wanted, limits=config.shard,
                                        expected_bytes=config.expected_bytes)
    return table_shards.pieces(dataset, source, config.source_name or source.address, options)


def check_polite(config: IngestConfig) -> None:
    """Raise ValueError unless the web's owners can find out who asks, and are asked no faster than was said."""
    config.web.check_identity()
    config.web.check_shared(config.workers.workers)


def failed(config: IngestConfig, dataset: Dataset, stage: Fetch) -> list[inputs_table.Row]:
    """What a retry asks for; nothing where nothing was fetched yet."""
    try:
        rows = list(inputs_table.failed_rows(dataset, dataset.snapshot(stage.table, version_of(stage))))
    except NoSuchTable:
        return []
    if any(row["kind"] == "url" for row in rows):  # img2dataset's records too
        check_polite(config)
    return rows


def show_plan(config: IngestConfig, dataset: Dataset) -> None:
    """What a run would add, without writing."""
    source = source_of(config)
    shards = [len(rows) for rows in files(config, dataset, source)]
    shards += [piece.rows.num_rows for piece in tables(config, dataset, source)]
    print(f"ingest: {sum(shards)} new rows would form {len(shards)} shards of {dataset.store.url}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
