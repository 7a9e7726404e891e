#!/usr/bin/env python3
"""Publish a checkpoint's weights: our folder, the official layout, a card; a version in MLflow; or go back to an earlier version.

    python training/publish.py --input demo-output/adaptor --output published/adaptor [--step 90] [--weights last] [--tracking URI]
    python training/publish.py --output published/adaptor --back-to 1

Versions are never overwritten. `<output>/current/` holds one small file for each change of what is current; the newest counts.
"""

from __future__ import annotations

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys

from infra.config import RunOptions, run_entry
from training.recipes_publish import RECIPES, PublishConfig

FLAGS = {
    "step": "the checkpoint (default: the newest)",
    "weights": "average or last (default: average, where the run has one)",
    "model": "name of the registered model in MLflow",
    "licence": "of the weights, for the card",
    "back_to": "make this version current again, publish nothing",
}


def main(argv: list[str]) -> int:
    """Exit code 0: published, or gone back; 2: could not."""
    return run_entry(argv, prog="publish", summary=__doc__ or "", recipes=RECIPES, main=run, flags=FLAGS)


def run(config: PublishConfig, options: RunOptions) -> int:
    """Read the checkpoint, write the version, make it current, register it."""
    from training import published

    if config.back_to:
        store, number = published.earlier(config)
        print(f"publish: back to version {number} of {store.url}")
        if not options.dry_run:
            published.go_back(config, options.tracking)
        return 0
    found = published.read(config)
    print(f"publish: {found.network}, step {found.step}, {found.part}, {len(found.tensors)} tensors -> {config.output}")
    if not options.dry_run:
        published.publish(config, found, options.tracking)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
