#!/usr/bin/env python3
"""Stage 2: train the adaptor (trunk and connectors) on a frozen prior.

    python training/train_adaptor.py --recipe tiny --input demo-output/corpus --output demo-output/adaptor [--dry-run]

The same command again continues an interrupted run, and says so when there is nothing left to do. The weights end in
`<output>/adaptor/`.
"""

from __future__ import annotations

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys

from infra.config import run_entry
from training.entry import run
from training.recipes import ADAPTOR_RECIPES


def main(argv: list[str]) -> int:
    """Exit code 0: trained, or already finished; 1: stopped while training; 2: could not start; 75: saved after SIGTERM."""
    return run_entry(argv, prog="train_adaptor", summary=__doc__, recipes=ADAPTOR_RECIPES, main=run)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
