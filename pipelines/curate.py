#!/usr/bin/env python3
"""Measure every image of a dataset, and select.

    python pipelines/curate.py --input corpus/
    python pipelines/curate.py --input corpus/ --set rule.min_short_side=512      # selections alone are done again

Workers measure (table `scores`); the driver derives from the scores what only the whole corpus can tell: percentiles, duplicates, test
sets;
then workers apply the rule (table `selections`). No pixel is moved, and a changed rule measures nothing again. A limit that the recipe
leaves out is a JSON object: --set 'rule.noise={"percentile": 99, "at_least": 3, "at_most": 6}'; `none` leaves one out.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, Snapshot
from pipelines.recipes.curate import RECIPES, CurateConfig
from pipelines.runtime.cluster import shared_cluster
from pipelines.runtime.job import run_stage
from pipelines.stages.scores import Scores
from pipelines.stages.selection import CONTAMINATED, MIN, Selection


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/curate.py", summary="images -> scores -> selections", recipes=RECIPES, main=run)


def run(config: CurateConfig, options: RunOptions) -> int:
    """Measure, learn from the whole, select."""
    check_models(config)
    dataset = Dataset(config.input)
    images = dataset.snapshot("images")
    stage = Scores(max_pixels=config.max_pixels, models=config.models.identified())
    with shared_cluster():
        scores = run_stage(stage, source=dataset, inputs={"images": images}, output=dataset, options=options, workers=config.workers)
        if scores is None:
            print("selection: planned when the scores are there")
            return 0
        select(config, dataset, scores, options)
    return 0


def check_models(config: CurateConfig) -> None:
    """A rule may judge only by what is measured. Raises ValueError."""
    if config.rule.semantic is not None and config.models.embedding is None:
        raise ValueError("the rule looks for semantic duplicates and no network embeds: set models.embedding to a folder with a CLIP "
                         "vision model, or leave them with --set rule.semantic=none")
    for one in config.rule.limits():
        if one.model and getattr(config.models, one.model) is None:
            raise ValueError(f"the rule judges by {one.measure!r} and no network measures it: set models.{one.model} to the path of its "
                             f"weights (docs/data.md), or leave the limit out with --set rule.{one.measure}=none")


def select(config: CurateConfig, dataset: Dataset, scores: Snapshot, options: RunOptions) -> None:
    """Derive the facts of the corpus and apply the rule."""
    from pipelines.contamination import read_tests  # late: `--help` does not need numpy
    from pipelines.contamination import told as told_of_tests
    from pipelines.corpus_facts import corpus_facts

    warn_of_forgotten_tests(config, dataset)
    tests = read_tests(config.exclude, max_pixels=config.max_pixels)
    facts = corpus_facts(dataset, scores, config.rule, tests, config.exclude_radius)
    if config.exclude:
        print(told_of_tests(tests, (name for of_shard in facts.contaminated.values() for name in of_shard.values())), flush=True)
    told = [f"{one.reason} {'below' if one.side == MIN else 'above'} {facts.limits[one.measure]:.4g}" for one in config.rule.limits()]
    print(f"corpus: {scores.rows} scores; {', '.join(told)}; {sum(map(len, facts.duplicates.values()))} duplicates", flush=True)
    run_stage(Selection(rule=config.rule), source=dataset, inputs={"scores": scores}, output=dataset, options=options,
              workers=config.workers, params_for_shard=facts.params)


def warn_of_forgotten_tests(config: CurateConfig, dataset: Dataset) -> None:
    """Test sets are named in every run: a run without them lets their pictures in again."""
    kept_out = dataset.snapshot("selections").ledger.rejected.get(CONTAMINATED, 0) if dataset.has("selections") else 0
    if kept_out and not config.exclude:
        print(f"WARNING: the selection so far keeps {kept_out} rows out that show pictures of test sets; this run names no test set, so "
              "they come in again: give the same --set exclude=[…] once more", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
