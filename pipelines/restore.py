#!/usr/bin/env python3
"""Restore pictures: one, a folder of them, or a dataset.

    python pipelines/restore.py --input my-photos/ --output restored/ --prompt "a street in the rain"
    python pipelines/restore.py --recipe release_quality --input s3://photos/v1 --output s3://restored/v1 --set prior=weights/sdxl

The output is a dataset with the table `restorations`, and for people `pictures/<name>.png` and the sheet `before_after.png`. A file
`<name>.txt` beside a picture says what is in it; `--prompt` speaks for the pictures without one; the captioner for the rest. Each
picture is committed by itself: the same command again continues, and does only what changed.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, Snapshot
from pipelines import before_after, ingest, memory_check, prompt_files, restored_files
from pipelines.recipes.ingest import IngestConfig
from pipelines.recipes.restore import RECIPES, RestoreConfig
from pipelines.runtime.job import run_stage
from pipelines.runtime.plan import plan_tasks, split_done
from pipelines.sources import Source
from pipelines.stages.restoration import Restoration
from pipelines.stages.restorer import RestorerSettings, Weights

FLAGS = {"prompt": "what is in the pictures, for those without a .txt file beside them (default: the captioner looks)"}
FAILURES_NAMED = 20  # choice: what a person reads; Dataset.outcomes has them all


def main(argv: list[str]) -> int:
    """The command line."""
    summary = "degraded pictures -> restored ones"
    return run_entry(argv, prog="pipelines/restore.py", summary=summary, recipes=RECIPES, main=run, flags=FLAGS)


def run(config: RestoreConfig, options: RunOptions) -> int:
    """Find the pictures, restore what is pending, write the files that people look at."""
    stage, output = make_stage(config), Dataset(config.output)
    source = Dataset(config.input)
    if Source(config.input).is_one_file or not source.has("images"):
        ingest.run(IngestConfig(input=config.input, output=config.output, shard=config.shard), options)
        source = output
    if options.dry_run and not source.has("images"):
        print("restore: planned when the pictures are there")
        return 0
    images = source.snapshot("images")
    prompts = prompt_files.by_shard(source, images, config.prompt, files=config.caption_files)
    pending = split_done(output, stage, plan_tasks(stage, {"images": images}, prompts))[1]
    memory_check.check(config, stage.restorer.weights, source, [task.inputs["images"] for task in pending])
    snapshot = run_stage(stage, source=source, inputs={"images": images}, output=output, options=options, workers=config.workers,
                         params_for_shard=prompts)
    if snapshot is not None:
        if config.pictures:
            restored_files.write(source, output, snapshot)
            before_after.write(source, output, images, snapshot)
        name_failures(source, (source, images), (output, snapshot))
    return 0


def make_stage(config: RestoreConfig) -> Restoration:
    """The stage of a configuration, with the hashes of the weights that it will read."""
    weights = Weights(prior=config.prior, encoder=config.encoder, adaptor=config.adaptor, precision=config.precision, device=config.device)
    settings = RestorerSettings(weights=weights, sampling=config.sampling, captioner=config.captioner, seed=config.seed)
    return Restoration(restorer=settings.identified(), upscale=config.upscale, longest_px=config.longest_px)


def name_failures(source: Dataset, *tables: tuple[Dataset, Snapshot]) -> None:
    """Say which pictures could not be restored, by the names that they came with."""
    names = restored_files.positions_of(source)
    failed = [one for dataset, snapshot in tables for ref in snapshot.shards.values() for one in dataset.outcomes(ref)]
    for one in failed[:FAILURES_NAMED]:
        name = names.get(one.row_id, [one.row_id])[0]
        print(f"not restored: {name}: {one.reason}: {one.detail.removeprefix(f'{name}: ')}", file=sys.stderr)
    if len(failed) > FAILURES_NAMED:
        print(f"not restored: {len(failed) - FAILURES_NAMED} more", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
