#!/usr/bin/env python3
"""Score a restorer on photographs that no training saw: degrade, restore, PSNR and SSIM against the original.

    python pipelines/score.py --input demo-output/corpus --output demo-output/scored
    python pipelines/score.py --recipe table1 --input s3://testset/v1 --output s3://scores/table1

Each degradation has a dataset of its own, `<output>/<degradation>`, with the table `evaluations`.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset
from infra.storage import join
from pipelines import score_summary
from pipelines.recipes.score import RECIPES, ScoreConfig
from pipelines.runtime.job import run_stage
from pipelines.stages.restoration_scores import RestorationScores
from pipelines.stages.restorer import RestorerSettings, Weights


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(
        argv, prog="pipelines/score.py", summary="held-out photographs -> PSNR and SSIM of what is restored", recipes=RECIPES, main=run
    )


def run(config: ScoreConfig, options: RunOptions) -> int:
    """Every degradation in turn, then the table of means."""
    source = Dataset(config.input)
    tables = ["images", *(["selections"] if source.has("selections") else [])]
    inputs = {table: source.snapshot(table) for table in tables}
    summaries = []
    for stage in make_stages(config):
        output = Dataset(join(config.output, stage.degradation))
        before = output.snapshot(stage.table).digest if output.has(stage.table) else None
        snapshot = run_stage(stage, source=source, inputs=inputs, output=output, options=options, workers=config.workers)
        if snapshot is not None:
            summaries.append(score_summary.summarise(output, snapshot, stage, is_new=snapshot.digest != before))
    if summaries:
        score_summary.show(summaries)
        score_summary.track(summaries, options.tracking)
    return 0


def make_stages(config: ScoreConfig) -> list[RestorationScores]:
    """One stage a degradation, with the hashes of the weights that it will read."""
    weights = Weights(prior=config.prior, encoder=config.encoder, adaptor=config.adaptor, precision=config.precision, device=config.device)
    settings = RestorerSettings(weights=weights, sampling=config.sampling, captioner=config.captioner, seed=config.seed).identified()
    return [
        RestorationScores(
            restorer=settings, degradation=name, size_px=config.size_px, holdout_every=config.holdout_every, batch_size=config.batch_size
        )
        for name in config.degradations
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
