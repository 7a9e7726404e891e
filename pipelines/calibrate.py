#!/usr/bin/env python3
"""Thresholds from photographs that people chose: percentiles of every measure over a reference set, and the bounds they make.

    python pipelines/calibrate.py --input DIV2K_train_HR/                        # a folder of photographs
    python pipelines/calibrate.py --input corpus/ --recipe strict --output strict.json      # a dataset with scores

Prints the flags that give `pipelines/curate.py` these bounds. Nothing in the input is changed.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from pipelines.recipes.calibrate import RECIPES, CalibrateConfig


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/calibrate.py", summary="a reference set -> thresholds", recipes=RECIPES, main=run,
                     default="paper_20m")


def run(config: CalibrateConfig, options: RunOptions) -> int:
    """Measure, tell, write."""
    import json
    from pathlib import Path

    from infra.local_store import replace_text
    from pipelines import reference_set  # late: `--help` does not need numpy

    if options.dry_run:
        print(f"would measure {config.input}")
        return 0
    models = config.models.identified()
    reference = reference_set.measured(config.input, max_pixels=config.max_pixels, threads=config.threads, models=models)
    found = reference_set.report(reference, config.rule, config.worst)
    print(reference_set.text(found))
    if config.output:
        replace_text(Path(config.output).expanduser(), json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
