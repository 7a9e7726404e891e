#!/usr/bin/env python3
"""Make negative-quality samples of a corpus, as a dataset of its own: images, and the prompts that made them as captions.

    python pipelines/negatives.py --recipe paper_100k --input s3://corpus/v1 --output s3://corpus/negatives-v1 --set prior=/weights/sdxl
"""

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from pathlib import Path

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, Snapshot
from infra.tracking import Tracker
from pipelines.negatives_review import choose_pairs, review, sheet
from pipelines.recipes.negatives import RECIPES, NegativesConfig
from pipelines.runtime.cluster import shared_cluster
from pipelines.runtime.job import Hooks, run_stage
from pipelines.stages.negatives import NegativesStage, PromptsAsCaptions
from pipelines.stages.parents import choose_parents
from pipelines.stages.weights import folder_identity


def run(config: NegativesConfig, options: RunOptions) -> int:
    """Choose parents, make their negatives, write the prompts down as captions."""
    source, output = Dataset(config.input), Dataset(config.output)
    if source.store.url == output.store.url:
        raise ValueError(f"--input and --output are both {config.input}: negatives are a dataset of their own, give them another address")
    images, selections = source.snapshot("images"), source.snapshot("selections")
    parents = choose_parents(source, selections, config.parents, config.negatives.seed)
    print(f"negatives: {sum(map(len, parents.values()))} parents of {selections.rows} images", flush=True)
    weights = folder_identity(config.prior)
    stage = NegativesStage(settings=config.negatives, prior=config.prior, weights=weights, batch_size=config.batch_size,
                           device=config.device)
    with shared_cluster():
        made = run_stage(stage, source=source, inputs={"images": images}, output=output, options=options, workers=config.workers,
                         params_for_shard=lambda shard: {"parents": parents.get(shard, [])}, calibrate_rows=config.calibrate,
                         hooks=Hooks(track=lambda tracker, snapshot: look(config, source, output, stage, snapshot, tracker)))
        if made is None:
            return 0
        vocabulary = folder_identity(config.clip_tokenizer) if config.clip_tokenizer else ""
        name = config.prior.rstrip("/").rsplit("/", 1)[-1]
        prompts = PromptsAsCaptions(model=name, weights=weights, clip_tokenizer=config.clip_tokenizer, clip_vocabulary=vocabulary)
        run_stage(prompts, source=output, inputs={"images": made}, output=output, options=options, workers=config.workers)
    return 0


def look(config: NegativesConfig, source: Dataset, output: Dataset, stage: NegativesStage, made: Snapshot, tracker: Tracker) -> None:
    """Measure a sample of negatives beside their parents, tell, and keep a sheet of them."""
    from supir_model.images import encode_png

    pairs = list(choose_pairs(source, output, made, stage.fit, config.review_pairs))
    if not pairs:
        return
    found, page_HWC = review(pairs), sheet(pairs)
    print(f"negatives: {found.describe()}", flush=True)
    tracker.metrics(found.metrics(), step=0)
    tracker.image("parents above negatives", page_HWC, step=0)
    if config.sheet:
        Path(config.sheet).write_bytes(encode_png(page_HWC))


def main(argv: list[str]) -> int:
    """The command line; see --help."""
    return run_entry(argv, prog="negatives", summary="Make negative-quality samples of a corpus.", recipes=RECIPES, main=run,
                     flags={"calibrate": "with --dry-run: rows that a worker tries, to estimate time, memory and cost"})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
