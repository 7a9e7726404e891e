#!/usr/bin/env python3
"""Export the accepted images of a dataset, with captions and origin, to WebDataset tars.

    python pipelines/export.py --input corpus/ --output export/
    python pipelines/export.py --input corpus/ --output export/ --set captioned=false      # also what has no caption

One tar a shard. `exports/<digest>.urls.txt` in the output lists the tars of this export, one a line, for WebDataset and its kin;
pipelines/ingest.py reads the tars back. What was taken down stays out; run it again after a takedown, and `gc` on the output.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.config import RunOptions, run_entry
from infra.dataset import Dataset, Snapshot, hash_config
from infra.storage import join
from pipelines.recipes.export import RECIPES, ExportConfig
from pipelines.runtime.job import run_stage
from pipelines.runtime.plan import Params
from pipelines.stages.export import Export


def main(argv: list[str]) -> int:
    """The command line."""
    return run_entry(argv, prog="pipelines/export.py", summary="accepted images -> WebDataset tars", recipes=RECIPES, main=run)


def run(config: ExportConfig, options: RunOptions) -> int:
    """Write the tars, then the list of them."""
    source, output = Dataset(config.input), Dataset(config.output)
    tables = ["images", "selections", *(["captions"] if config.captioned else [])]
    inputs = {table: source.snapshot(table) for table in tables}
    stage = Export(require_caption=config.captioned, output_url=output.store.url)
    taken_down = source.takedowns()

    def params(shard: str) -> Params:
        return {"shard": shard, "taken_down": taken_down_here(source, inputs["selections"], shard, taken_down)}

    exports = run_stage(stage, source=source, inputs=inputs, output=output, options=options, workers=config.workers,
                        params_for_shard=params)
    if exports is not None:
        write_list(output, exports)
    return 0


def taken_down_here(dataset: Dataset, selections: Snapshot, shard: str, taken_down: frozenset[str]) -> list[str]:
    """The source ids of a shard that were taken down, so that a takedown makes its own shards stale and no others."""
    if not taken_down or shard not in selections.shards:
        return []
    rows = dataset.read(selections.shards[shard], ["image_id", "source_id"]).to_pylist()
    return sorted(row["source_id"] for row in rows if taken_down & {row["image_id"], row["source_id"]})


def write_list(output: Dataset, exports: Snapshot) -> None:
    """Write the addresses of the tars under a name that their content decides."""
    tars = sorted({tar for ref in exports.shards.values() for tar in output.read(ref, ["tar"]).column("tar").to_pylist()})
    name = f"exports/{hash_config(tars)}.urls.txt"
    output.store.create(name, "".join(f"{join(output.store.url, tar)}\n" for tar in tars).encode())
    print(f"export: {len(tars)} tars, listed in {join(output.store.url, name)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
