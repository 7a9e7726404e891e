#!/usr/bin/env python3
"""Caption the accepted images of a dataset.

    python pipelines/caption.py --recipe llava_13b --input s3://corpus/v1
    ray job submit --working-dir . -- python pipelines/caption.py --recipe llava_13b --input s3://corpus/v1
"""

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, Snapshot
from infra.tracking import Tracker
from pipelines.caption_samples import log_samples
from pipelines.recipes.caption import RECIPES, CaptionConfig
from pipelines.runtime.job import Hooks, run_stage
from pipelines.stages.captions import CaptionStage
from pipelines.stages.weights import folder_identity


def run(config: CaptionConfig, options: RunOptions) -> int:
    """Plan what is pending, caption it, publish the table."""
    dataset = Dataset(config.input)
    tables = ["images", "selections"] if config.selected_only else ["images"]
    inputs = {table: dataset.snapshot(table) for table in tables}

    def log_pictures(tracker: Tracker, made: Snapshot) -> None:
        if options.tracking:
            log_samples(tracker, dataset, made, config.sample_pictures)

    hooks = Hooks(stop=config.band.left_by, track=log_pictures)
    run_stage(make_stage(config), source=dataset, inputs=inputs, output=dataset, options=options, workers=config.workers, hooks=hooks,
              calibrate_rows=config.calibrate)
    return 0


def make_stage(config: CaptionConfig) -> CaptionStage:
    """The stage of a configuration, with the hashes of the weights that it will read."""
    vocabulary = folder_identity(config.clip_tokenizer) if config.clip_tokenizer else ""
    return CaptionStage(captioner=config.captioner, checks=config.checks, seen=config.seen.identified(),
                        agreement=config.agreement.identified(), batch_size=config.batch_size, clip_tokenizer=config.clip_tokenizer,
                        weights=config.captioner.weights(), clip_vocabulary=vocabulary)


def main(argv: list[str]) -> int:
    """The command line; see --help."""
    return run_entry(argv, prog="caption", summary="Caption the accepted images of a dataset.", recipes=RECIPES, main=run,
                     flags={"calibrate": "with --dry-run: rows that a worker tries, to estimate time, memory and cost"})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
