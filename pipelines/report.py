#!/usr/bin/env python3
"""Show a workspace, or one dataset, as a self-contained HTML page.

    python pipelines/report.py --input demo-output --output demo-output/index.html
    python pipelines/report.py --recipe dataset --input s3://corpus/v1 --output corpus.html

A workspace: ledger, captions, negatives, curves, comparisons, commands, credits. A dataset: flow, distributions with their thresholds and
the pictures beside them, contact sheets by reason, duplicates, captions, licences, cost; and corpus.croissant.json, its card.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import ConfigError, RunOptions, run_entry
from infra.local_store import replace_text
from pipelines.recipes.report import RECIPES, DatasetReportConfig, ReportConfig


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/report.py", summary="a workspace or a dataset -> one HTML page", recipes=RECIPES, main=run)


def run(config: ReportConfig | DatasetReportConfig, options: RunOptions) -> int:
    """Collect, build, write."""
    if "://" in config.output:
        raise ConfigError(f"output {config.output!r}: the page is written to a local path")
    target = Path(config.output).expanduser().resolve()
    if options.dry_run:
        print(f"report: would read {config.input} and write {target}")
        return 0
    from pipelines.page.build import build  # late: reading datasets and pictures
    from pipelines.page.collect import collect
    from pipelines.page.dataset import card
    from pipelines.page.dataset.collect import collect as collect_dataset
    from pipelines.page.reading import AsItWas

    if isinstance(config, DatasetReportConfig):
        dataset = AsItWas(config.input)
        page = collect_dataset(config, dataset)
        text = build(page)
        described = target.with_suffix(".croissant.json")
        replace_text(described, json.dumps(card.croissant(dataset, page, target.parent), indent=1, ensure_ascii=False) + "\n")
        print(f"report: {described}", flush=True)
    else:
        text = build(collect(config, options.tracking))
    replace_text(target, text)
    print(f"report: {target} ({len(text.encode()) / 1e6:.1f} MB)", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
