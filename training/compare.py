#!/usr/bin/env python3
"""Training runs beside each other: where each ended, what differs between their configurations, and every curve over images seen.

    python training/compare.py --tracking http://mlflow:5000 --output compare.html
    python training/compare.py --tracking http://mlflow:5000 --output compare.html --filter "params.network = 'sdxl_paper'"

The page is written to the local path and kept in MLflow too, as an artifact of a run in the experiment `comparisons`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datetime import UTC, datetime

from infra.config import ConfigError, RunOptions, run_entry
from infra.local_store import replace_text
from training.recipes_compare import RECIPES, CompareConfig

FLAGS = {"filter": "which runs, in MLflow's language, e.g. \"tags.data = '…'\""}
EXPERIMENT = "comparisons"


def main(argv: list[str]) -> int:
    """Exit code 0: the page is written; 2: there is nothing to compare, or no tracking server."""
    return run_entry(argv, prog="compare", summary=__doc__, recipes=RECIPES, main=run, flags=FLAGS)


def run(config: CompareConfig, options: RunOptions) -> int:
    """Find, draw, keep."""
    if options.tracking is None:
        raise ConfigError("--tracking is wanted (or MLFLOW_TRACKING_URI): the address of the MLflow server, or sqlite:///…/mlflow.db")
    if "://" in config.output:
        raise ConfigError(f"output {config.output!r}: the page is written to a local path")
    if options.dry_run:
        print(f"compare: would ask {options.tracking} and write {config.output}")
        return 0
    from infra.tracking import find_runs, open_tracker
    from training.compare_page import build

    runs = find_runs(options.tracking, config.experiments, config.filter, config.runs, config.most)
    text = build(config.title, runs, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    replace_text(Path(config.output).expanduser(), text)
    tracker = open_tracker(options.tracking, experiment=EXPERIMENT, run_name=config.title)
    tracker.tags({"runs": ",".join(one.run_id for one in runs)})
    tracker.artifact("compare.html", text.encode())
    tracker.close()
    print(f"compare: {len(runs)} runs: {config.output}, and in MLflow as compare.html of a run in {EXPERIMENT!r}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
