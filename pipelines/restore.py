#!/usr/bin/env python3
"""Restore pictures: a folder of them, or a dataset.

python pipelines/restore.py --input my-photos/ --output restored/       # the PNG files end in restored/pictures/
python pipelines/restore.py --recipe release_quality --input s3://photos/v1 --output s3://restored/v1 --set prior=weights/sdxl
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset
from pipelines import ingest, restored_files
from pipelines.recipes.ingest import IngestConfig
from pipelines.recipes.restore import RECIPES, RestoreConfig
from pipelines.runtime.job import run_stage
from pipelines.stages.restoration import Restoration
from pipelines.stages.restorer import RestorerSettings, Weights


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/restore.py", summary="degraded pictures -> restored ones", recipes=RECIPES, main=run)


def run(config: RestoreConfig, options: RunOptions) -> int:
    """Find the pictures, restore what is pending, write the files that people look at."""
    stage, output = make_stage(config), Dataset(config.output)
    source = Dataset(config.input)
    if not source.has("images"):
        ingest.run(IngestConfig(input=config.input, output=config.output), options)
        source = output
    if options.dry_run and not source.has("images"):
        print("restore: planned when the pictures are there")
        return 0
    images = source.snapshot("images")
    snapshot = run_stage(stage, source=source, inputs={"images": images}, output=output, options=options, workers=config.workers)
    if snapshot is not None and config.pictures:
        restored_files.write(source, output, snapshot)
    return 0


def make_stage(config: RestoreConfig) -> Restoration:
    """The stage of a configuration, with the hashes of the weights that it will read."""
    weights = Weights(prior=config.prior, encoder=config.encoder, adaptor=config.adaptor, precision=config.precision, device=config.device)
    settings = RestorerSettings(weights=weights, sampling=config.sampling, captioner=config.captioner, seed=config.seed)
    return Restoration(restorer=settings.identified(), upscale=config.upscale, longest_px=config.longest_px)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
