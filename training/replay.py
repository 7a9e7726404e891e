#!/usr/bin/env python3
"""Replay a step whose loss or gradient was not finite, from what the training dumped: no data set and no cluster are needed.

    python training/replay.py --input runs/adaptor [--dump dumps/step-…/dump.….json] [--prior FOLDER] [--set device=cuda]

Prints the loss of every sample as it was and as it is now, and the parameters whose gradient is not finite.
"""

from __future__ import annotations

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys

from infra.config import RunOptions, run_entry
from training.recipes_replay import RECIPES, ReplayConfig

FLAGS = {
    "dump": "key of the dump (default: the newest)",
    "prior": "folder of the prior on this machine",
    "encoder": "folder of stage 1's encoder on this machine",
}


def main(argv: list[str]) -> int:
    """Exit code 0: the number came out again; 1: it did not; 2: there is nothing to replay."""
    return run_entry(argv, prog="replay", summary=__doc__ or "", recipes=RECIPES, main=run, flags=FLAGS)


def run(config: ReplayConfig, options: RunOptions) -> int:
    """Read, run forward and backward, compare."""
    from infra.stores import open_store
    from training import dump, replayed

    found = dump.read(open_store(config.input), config.dump)
    facts = found.facts
    where = f"step {facts.step} of run {facts.run}, {facts.world} workers, after checkpoint {facts.checkpoint}"
    print(f"replay: {facts.what} {facts.value} in {where}")
    return 0 if options.dry_run else replayed.replay(config, found)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
